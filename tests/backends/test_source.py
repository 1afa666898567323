"""A replica whose run lies on an object store: it serves a copy, and whatever the store does."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress

import pytest

from backends.checkpoint import Run, StepExists, publish, rollback
from backends.checkpoint.mirror import push
from backends.checkpoint.objects import Store
from backends.wire import Kind
from tests.backends.fakes import Gateway, Scale, commit_model, x


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path / "run")
    for step in (2, 3):
        commit_model(run, step, Scale(float(step)))
    publish(run, "stable", 2)
    return run


def follow(tmp_path, poll_s=0.02):
    return (
        f'run = "file://{tmp_path}/store"\ncache = "{tmp_path}/cache"\n'
        f"poll_s = {poll_s}\nprobation_s = 0.1\n"
    )


async def answer(gateway):
    [outputs], _ = await gateway.ask(Scale.signature, x(1.0))
    return outputs["y"].flatten().tolist()


async def test_it_waits_for_the_store_then_serves_what_is_put_there(serve, run, tmp_path):
    store = Store(f"file://{tmp_path}/store")
    async with serve(follow(tmp_path)) as replica:
        gateway = await Gateway.connect(replica.address)
        waiting = await gateway.state("loading")
        assert not waiting.versions
        push(run, "stable", store)
        ready = await gateway.state("ready")
        assert ready.version == run.manifest(2).version
        assert await answer(gateway) == [2.0]
        publish(run, "stable", 3)
        push(run, "stable", store)
        await gateway.serves(run.manifest(3).version)
        assert await answer(gateway) == [3.0]
        rollback(run, "stable")
        push(run, "stable", store)
        await gateway.serves(run.manifest(2).version)
        await gateway.close()


async def test_a_store_that_breaks_is_told_and_what_serves_goes_on(serve, run, tmp_path):
    store = Store(f"file://{tmp_path}/store")
    push(run, "stable", store)
    async with serve(follow(tmp_path)) as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        publish(run, "stable", 3)
        push(run, "stable", store)
        await gateway.serves(run.manifest(3).version)
        commit_model(run, 4, Scale(4.0))
        publish(run, "stable", 4)
        push(run, "stable", store)
        shutil.rmtree(tmp_path / "store/ckpt/step-00000004/model")
        await gateway.control("reload")
        await gateway.until(lambda: "step-00000004" in gateway.statuses[-1].reason)
        assert gateway.statuses[-1].state == "ready"
        assert await answer(gateway) == [3.0]
        await gateway.close()


async def test_a_copys_channel_is_moved_in_the_store_only(serve, run, tmp_path):
    push(run, "stable", Store(f"file://{tmp_path}/store"))
    async with serve(follow(tmp_path)) as replica:
        gateway = await Gateway.connect(replica.address)
        ready = await gateway.state("ready")
        frame = await gateway.control(
            "point", channel="canary", like="stable", version=ready.version, before=""
        )
        assert frame.kind == Kind.ERROR
        assert "publish there" in frame.json()["message"]
        await gateway.close()


def shard_in(store):
    (found,) = store.glob("ckpt/step-00000003/model/*.safetensors")
    return found


def flipped(store):
    data = bytearray(shard_in(store).read_bytes())
    data[-1] ^= 1
    shard_in(store).write_bytes(data)


def lies(store):
    """A manifest that lies, and is sealed rightly: another than the channel points at."""
    path = store / "ckpt/step-00000003/MANIFEST.json"
    document = json.loads(path.read_bytes())
    document["evaluation"] = {"accuracy": 1.0}
    path.write_bytes(json.dumps(document, sort_keys=True).encode())


def half_a_record(store):
    path = store / "channels/stable/000000000002.json"
    path.write_bytes(path.read_bytes()[:20])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flipped, "xxh3"),
        (lambda store: shard_in(store).write_bytes(shard_in(store).read_bytes()[:-4]), "bytes"),
        (lambda store: shard_in(store).unlink(), "nothing"),
        (lies, "MANIFEST.json"),
        (
            lambda store: (store / "ckpt/step-00000003/MANIFEST.json").unlink(),
            "step 3 is not committed",
        ),
        (half_a_record, "channel stable"),
    ],
    ids=["bit", "truncation", "shard", "lie", "manifest", "channel"],
)
async def test_what_is_not_what_was_pushed_is_told_and_never_served(
    serve, run, tmp_path, damage, said
):
    store = Store(f"file://{tmp_path}/store")
    push(run, "stable", store)
    publish(run, "stable", 3)
    # It looks at the store only when it is told to: the damage comes before.
    async with serve(follow(tmp_path, poll_s=60)) as replica:
        gateway = await Gateway.connect(replica.address)
        ready = await gateway.state("ready")
        push(run, "stable", store)
        damage(tmp_path / "store")
        await gateway.control("reload")
        await gateway.until(lambda: said in gateway.statuses[-1].reason)
        (failed,) = (fields for event, fields in replica.log if event == "store.failed")
        assert said in failed["reason"] and failed["store"] == store.url
        assert (gateway.statuses[-1].state, gateway.statuses[-1].version) == (
            "ready",
            ready.version,
        )
        assert await answer(gateway) == [2.0]
        commit_model(run, 4, Scale(4.0))
        publish(run, "stable", 4)
        with suppress(StepExists):  # of the way back, which is told once the channel has moved
            push(run, "stable", store)
        await gateway.control("reload")
        await gateway.serves(run.manifest(4).version)
        assert not gateway.statuses[-1].reason
        await gateway.close()
