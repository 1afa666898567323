"""What a channel points at is said once, again when asked, and whatever the file was before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from queue import Queue

import pytest

from backends.checkpoint import ChannelRecord, Run, publish
from backends.watching import Watching
from tests.backends.fakes import Scale, commit_model

PATIENCE_S = 20


class Watched:
    """`said` are records, or why there is none."""

    def __init__(self, run: Run, poll_s: float) -> None:
        self.said: Queue[ChannelRecord | str | None] = Queue()
        self.watching = Watching(
            run, "stable", poll_s=poll_s, found=self.said.put, unread=self.said.put
        )

    def version(self) -> str:
        record = self.said.get(timeout=PATIENCE_S)
        assert isinstance(record, ChannelRecord), record
        return record.version


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    for step in (1, 2):
        commit_model(run, step, Scale(float(step)))
    return run


@pytest.fixture
def often(run: Run) -> Iterator[Watched]:
    watched = Watched(run, 0.001)
    yield watched
    watched.watching.stop()


@pytest.fixture
def never(run: Run) -> Iterator[Watched]:
    """Looks only when it is told to."""
    watched = Watched(run, 3600.0)
    yield watched
    watched.watching.stop()


def test_each_move_is_said_once(run: Run, often: Watched):
    often.watching.start()
    # A record said twice would stand before that of the next move.
    for step in (1, 2, 1, 2):
        moved = publish(run, "stable", step)
        said = often.said.get(timeout=PATIENCE_S)
        assert isinstance(said, ChannelRecord)
        assert (said.version, said.generation) == (moved.version, moved.generation)


def test_it_is_said_anew_when_asked(run: Run, never: Watched):
    version = publish(run, "stable", 1).version
    never.watching.start()
    assert never.version() == version
    never.watching.look_again()
    assert never.version() == version


def test_what_cannot_be_read_is_said_until_it_can(run: Run, often: Watched):
    version = publish(run, "stable", 1).version
    path = run.channels / "stable.json"
    good = path.read_bytes()
    path.write_bytes(b"{")
    often.watching.start()
    for _ in range(2):
        why = often.said.get(timeout=PATIENCE_S)
        assert isinstance(why, str) and str(path) in why
    path.with_suffix(".new").write_bytes(good)
    path.with_suffix(".new").replace(path)
    while isinstance(why, str):
        why = often.said.get(timeout=PATIENCE_S)
    assert why is not None and why.version == version
