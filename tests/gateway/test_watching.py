"""When files that are looked at are worth reading again."""

from __future__ import annotations

import os

import pytest

from gateway.settings import Settings
from gateway.watching import Watching


@pytest.fixture
def watching(tmp_path):
    (tmp_path / "r.toml").write_text("x")
    file = tmp_path / "serve.toml"
    file.write_text('[[models]]\nname = "m"\n[[models.replicas]]\nname = "r"\nspawn = "r.toml"\n')
    settings = Settings.read(file)

    async def never():
        raise AssertionError

    return Watching(lambda: settings, never)


def looks(watching, count, watched=True):
    return [watching.look(watched=watched) for _ in range(count)]


@pytest.mark.parametrize("name", ["serve.toml", "r.toml"])
def test_a_change_is_told_once_when_it_is_over(watching, tmp_path, name):
    assert looks(watching, 2) == [False, False]
    for text in ("a", "ab", "abc"):  # still being written
        (tmp_path / name).write_text(text)
        assert looks(watching, 1) == [False]
    assert looks(watching, 3) == [True, False, False]


def test_a_file_that_goes_and_one_that_is_put_in_its_place_are_changes(watching, tmp_path):
    (tmp_path / "serve.toml").unlink()
    assert looks(watching, 3) == [False, True, False]
    (tmp_path / "other").write_text("x")
    os.replace(tmp_path / "other", tmp_path / "serve.toml")
    assert looks(watching, 3) == [False, True, False]


def test_what_changed_while_nothing_was_watched_is_no_news(watching, tmp_path):
    (tmp_path / "serve.toml").write_text("x")
    assert looks(watching, 2, watched=False) == [False, False]
    assert looks(watching, 2) == [False, False]
