"""A replica whose run lies on an object store: it serves a copy, and whatever the store does."""

from __future__ import annotations

import shutil

import pytest

from backends.checkpoint import Run, publish, rollback
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


def follow(tmp_path):
    return (
        f'run = "file://{tmp_path}/store"\ncache = "{tmp_path}/cache"\n'
        "poll_s = 0.02\nprobation_s = 0.1\n"
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
