"""What breaks while a version is loaded: each ends with the old version serving and an event that
says what happened; and the next good version is served."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from backends.checkpoint import Run, is_quarantined, publish
from tests.backends.fakes import Gateway, Scale, commit_model, eventually, flip_a_byte
from tests.backends.test_follower import FOLLOW, factor, named, put


def shard_of(folder: Path) -> Path:
    (found,) = folder.glob("model/*.safetensors")
    found.chmod(0o644)
    return found


def cut_short(folder: Path) -> None:
    shard = shard_of(folder)
    shard.write_bytes(shard.read_bytes()[:-4])


def rewritten(folder: Path) -> None:
    """A manifest that lies, and is sealed rightly: another than the channel points at."""
    path = folder / "MANIFEST.json"
    path.chmod(0o644)
    document = json.loads(path.read_bytes())
    document["evaluation"] = {"accuracy": 1.0}
    path.write_bytes(json.dumps(document, sort_keys=True).encode())


AS_A_USER = pytest.mark.skipif(os.geteuid() == 0, reason="root reads what it likes")

# What is done to a committed step: how it is called, what is said of it, and whether its bytes are
# wrong for everybody.
DAMAGES = [
    pytest.param(flip_a_byte, "xxh3", True, id="bit"),
    pytest.param(cut_short, "bytes", True, id="truncation"),
    pytest.param(lambda folder: shard_of(folder).unlink(), "no file", True, id="shard"),
    pytest.param(rewritten, "MANIFEST.json", True, id="lie"),
    pytest.param(
        lambda folder: (folder / "MANIFEST.json").unlink(), "is not committed", False, id="manifest"
    ),
    # Retention, or somebody's hand.
    pytest.param(shutil.rmtree, "is not committed", False, id="gone"),
    pytest.param(lambda folder: folder.chmod(0), "denied", False, id="denied", marks=AS_A_USER),
]


@pytest.mark.parametrize(("damage", "said", "quarantined"), DAMAGES)
async def test_what_is_not_what_was_committed(
    serve, run: Run, damage: Callable[[Path], None], said: str, quarantined: bool
):
    old = put(run, 1)
    # It looks at the channel only when it is told to: the damage comes before.
    async with serve(FOLLOW, poll_s=60, probation_s=0) as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        bad = commit_model(run, 2, Scale(2.0))
        publish(run, "stable", 2)
        damage(run.folder(2))
        await gateway.control("reload")
        await gateway.until(lambda: bad.version in gateway.statuses[-1].reason)
        event = "reload.corrupt" if quarantined else "reload.transient"
        assert said in named(replica, event)[0]["reason"]
        assert await factor(gateway) == (1.0, old)
        if quarantined:
            await eventually(lambda: is_quarantined(run, bad.hash))
        new = put(run, 3)
        await gateway.control("reload")
        await gateway.serves(new)
        assert await factor(gateway) == (3.0, new)
        await gateway.close()


async def test_a_step_behind_a_link_is_what_its_bytes_are(serve, run, tmp_path):
    old = put(run, 1)
    async with serve(FOLLOW, poll_s=60, probation_s=0) as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        for step, damage in ((2, flip_a_byte), (3, lambda folder: None)):
            new = put(run, step)
            folder = run.folder(step)
            folder.rename(tmp_path / folder.name)
            folder.symlink_to(tmp_path / folder.name)
            damage(folder)
            await gateway.control("reload")
            await gateway.until(
                lambda new=new: (
                    new in gateway.statuses[-1].reason or gateway.statuses[-1].version == new
                )
            )
            assert await factor(gateway) == ((1.0, old) if step == 2 else (3.0, new))
        assert len(named(replica, "reload.corrupt")) == 1
        await gateway.close()


def failing(code: int) -> OSError:
    return OSError(code, os.strerror(code))


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("os.preadv", failing(errno.EIO)),
        ("os.preadv", failing(errno.ESTALE)),
        ("backends.claim.ReaderLease.acquire", failing(errno.ENOSPC)),
        ("backends.claim.ReaderLease.acquire", failing(errno.EROFS)),
        ("backends.tensor.loading.empty", MemoryError()),
    ],
    ids=["disk", "stale", "full", "read-only", "memory"],
)
async def test_what_may_pass_is_tried_again(serve, run, monkeypatch, where, error):
    old = put(run, 1)
    async with serve(FOLLOW, poll_s=60, probation_s=0) as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        new = put(run, 2)
        with monkeypatch.context() as broken:

            def fails(*arguments: object) -> object:
                raise error

            broken.setattr(where, fails)
            await gateway.control("reload")
            await gateway.until(lambda: new in gateway.statuses[-1].reason)
            reason = named(replica, "reload.transient")[0]["reason"]
            assert (getattr(error, "strerror", None) or "MemoryError") in reason
            assert await factor(gateway) == (1.0, old)
        await gateway.serves(new)  # of itself
        assert not list(run.quarantine.glob("*"))
        await gateway.close()


@pytest.mark.parametrize("jump", [-1e9, 1e9])
async def test_a_clock_that_jumps_in_probation_changes_nothing(serve, run, monkeypatch, jump):
    old, real = put(run, 1), time.time
    async with serve(FOLLOW, poll_s=0.02, probation_s=0.3) as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        new = put(run, 2)
        await gateway.serves(new)
        monkeypatch.setattr(time, "time", lambda: real() + jump)
        assert gateway.statuses[-1].versions == (old, new)
        await gateway.until(lambda: gateway.statuses[-1].reload == "idle")
        third = put(run, 3)
        await gateway.serves(third)
        await gateway.until(lambda: gateway.statuses[-1].reload == "idle")
        assert not named(replica, "reload.rollback")
        await gateway.close()
