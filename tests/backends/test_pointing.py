"""A channel is pointed where another points, if both are where the asker saw them."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.checkpoint import Run, publish, read_channel
from backends.errors import Conflict
from backends.pointing import Pointing
from tests.backends.fakes import Scale, commit_model


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def version_of(run: Run, step: int, *channels: str) -> str:
    manifest = commit_model(run, step, Scale(float(step)))
    for channel in channels:
        publish(run, channel, step)
    return manifest.version


async def test_it_moves_once_and_tells_of_it(run: Run):
    old = version_of(run, 1, "stable")
    new = version_of(run, 2, "canary")
    told: list[tuple[str, str]] = []
    point = Pointing(run, lambda event, **said: told.append((event, said["version"])), "")
    moved = await point("stable", "canary", new, old)
    assert moved == {"channel": "stable", "version": new, "generation": 2}
    assert told == [("channel.pointed", new)]
    # Where it is there already, nothing is published again.
    assert (await point("stable", "canary", new, ""))["generation"] == 2


async def test_it_moves_nothing_that_is_elsewhere(run: Run):
    old = version_of(run, 1, "stable")
    new = version_of(run, 2, "canary")
    point = Pointing(run, lambda event, **said: None, "")
    for like, version, before, said in (
        ("canary", old, old, "channel canary is at"),
        ("canary", new, new, "channel stable is at"),
        ("nowhere", new, old, "channel nowhere is at nowhere"),
        ("nowhere", "", old, "nothing was published to channel nowhere"),
    ):
        with pytest.raises(Conflict, match=said):
            await point("stable", like, version, before)
    record = read_channel(run, "stable")
    assert record is not None and record.version == old


async def test_a_copy_is_moved_where_it_comes_from(run: Run):
    point = Pointing(run, lambda event, **said: None, "s3://store/run")
    with pytest.raises(Conflict, match="publish there"):
        point("stable", "canary", "", "")
