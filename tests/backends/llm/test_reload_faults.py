"""What breaks while a version of a language model is loaded, as in `tests.backends`: each ends with
the old version answering, an event that says what happened, and the next good version served."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from backends.checkpoint import Run, is_quarantined, publish
from tests.backends.fakes import eventually
from tests.backends.llm.test_replica import Caller, commit_decoder, folder, run, serve
from tests.backends.test_follower import named
from tests.backends.test_reload_faults import DAMAGES, failing

__all__ = ["folder", "run", "serve"]  # fixtures


def put(run: Run, step: int) -> str:
    commit_decoder(run, step)
    publish(run, "stable", step)
    return run.manifest(step).version


def other_tokens(folder: Path) -> None:
    path = folder / "model/tokenizer.json"
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "said", "quarantined"),
    [*DAMAGES, pytest.param(other_tokens, "tokenizer.json", True, id="tokenizer")],
)
async def test_what_is_not_what_was_committed(
    serve, run: Run, damage: Callable[[Path], None], said: str, quarantined: bool
):
    old = put(run, 1)
    # It looks at the channel only when it is told to: the damage comes before.
    async with serve('swap = "auto"', how=None, threads=1, poll_s=60, probation_s=0) as replica:
        gateway = await Caller.connect(replica.address)
        await gateway.state("ready")
        bad = put(run, 2)
        hash = run.manifest(2).hash
        damage(run.folder(2))
        await gateway.control("reload")
        await gateway.until(lambda: bad in gateway.statuses[-1].reason)
        event = "reload.corrupt" if quarantined else "reload.transient"
        assert said in named(replica, event)[0]["reason"]
        assert (await gateway.text())[1] == old
        if quarantined:
            await eventually(lambda: is_quarantined(run, hash))
        new = put(run, 3)
        await gateway.control("reload")
        await gateway.serves(new)
        assert (await gateway.text())[1] == new
        await gateway.close()


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("os.preadv", failing(errno.EIO)),
        ("backends.claim.ReaderLease.acquire", failing(errno.ENOSPC)),
        ("backends.llm.weights.choose_network", MemoryError()),
    ],
    ids=["disk", "full", "memory"],
)
async def test_what_may_pass_is_tried_again(serve, run, monkeypatch, where, error):
    old = put(run, 1)
    async with serve('swap = "auto"', how=None, threads=1, poll_s=60, probation_s=0) as replica:
        gateway = await Caller.connect(replica.address)
        await gateway.state("ready")
        new = put(run, 2)
        with monkeypatch.context() as broken:

            def fails(*arguments: object, **options: object) -> object:
                raise error

            broken.setattr(where, fails)
            await gateway.control("reload")
            await gateway.until(lambda: new in gateway.statuses[-1].reason)
            reason = named(replica, "reload.transient")[0]["reason"]
            assert (getattr(error, "strerror", None) or "MemoryError") in reason
            assert (await gateway.text())[1] == old
        await gateway.serves(new)  # of itself
        assert not list(run.quarantine.glob("*"))
        await gateway.close()
