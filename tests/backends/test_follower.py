"""Hot reload in a running replica: verified before it serves, swapped between batches, and back if
it does worse; the oracle for "which version answered" is the factor that the weights hold."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref

import pytest
import torch

from backends.checkpoint import Probe, is_quarantined, live_leases, publish, quarantine, rollback
from backends.wire import Kind
from tests.backends.fakes import (
    Gate,
    Gateway,
    Scale,
    Slow,
    Wider,
    commit_model,
    eventually,
    flip_a_byte,
    unpack,
    x,
)

FOLLOW = 'run = "run"\nchannel = "stable"\n'


def put(run, step, model=None, **config):
    """Commits and publishes; the version's name."""
    model = model or Scale(float(step))
    manifest = commit_model(run, step, model, **config)
    publish(run, "stable", step)
    return manifest.version


async def factor(gateway, signature=Scale.signature, **options):
    (answer,), version = await gateway.ask(signature, x(1.0), **options)
    return answer["y"].item(), version


def named(replica, event):
    return [fields for name, fields in replica.log if name == event]


async def test_it_waits_for_the_first_published_checkpoint(serve, run):
    async with serve(FOLLOW, poll_s=0.02) as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.until(lambda: "waiting for the first" in gateway.statuses[-1].reason)
        assert gateway.statuses[-1].state == "loading"
        assert 'channel "stable"' in gateway.statuses[-1].reason
        version = put(run, 3)
        status = await gateway.state("ready")
        assert (status.version, status.versions, status.generation) == (version, (version,), 1)
        assert await factor(gateway) == (3.0, version)
        assert [lease.target for lease in live_leases(run)] == ["step-00000003"]
        await gateway.close()
    assert live_leases(run) == []


async def test_a_new_version_is_swapped_in_and_committed_after_probation(serve, run):
    old = put(run, 1)
    async with serve(FOLLOW, poll_s=0.02, probation_s=0.3) as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        new = put(run, 2)
        status = await gateway.serves(new)
        assert (status.generation, status.reload, status.state) == (2, "probation", "ready")
        assert set(status.versions) == {old, new}
        assert await factor(gateway) == (2.0, new)
        assert await factor(gateway, version=old) == (1.0, old)
        await gateway.until(lambda: gateway.statuses[-1].reload == "idle")
        assert gateway.statuses[-1].versions == (new,)
        fault = await gateway.fault(gateway.execute(Scale.signature, [x(1.0)], version=old))
        assert (fault.status, fault.code) == (404, "model_version_not_found")
        await eventually(lambda: len(live_leases(run)) == 1)
        assert all(status.state == "ready" for status in gateway.statuses if status.version)
        events = [event.removeprefix("reload.") for event, _ in replica.log if "reload" in event]
        loaded = ["admit", "load", "verify", "ready", "swapped"]
        assert events == [*loaded, "commit", *loaded, "probation", "commit"]
        await gateway.close()


async def test_versions_that_are_kept_can_be_pinned_and_gone_back_to(serve, run):
    first = put(run, 1)
    async with serve(FOLLOW, poll_s=0.02, probation_s=0, versions=2) as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        second = put(run, 2)
        await gateway.serves(second)
        third = put(run, 3)
        status = await gateway.serves(third)
        await gateway.until(lambda: len(gateway.statuses[-1].versions) == 2)
        assert await factor(gateway, version=second) == (2.0, second)
        rollback(run, "stable")
        status = await gateway.serves(second)
        assert status.generation == 4
        assert len(named(replica, "reload.load")) == 3
        assert first not in status.versions
        await gateway.close()


async def test_a_corrupt_version_is_quarantined_and_the_old_one_serves_on(serve, run):
    old = put(run, 1)
    # It looks at the channel only when it is told to: the damage comes before.
    async with serve(FOLLOW, poll_s=60) as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        bad = commit_model(run, 2, Scale(2.0))
        publish(run, "stable", 2)
        flip_a_byte(run.folder(2))
        await gateway.control("reload")
        await gateway.until(lambda: bool(gateway.statuses[-1].reason))
        status = gateway.statuses[-1]
        assert (status.state, status.version, status.reload) == ("ready", old, "idle")
        assert bad.version in status.reason and "xxh3" in status.reason
        await eventually(lambda: is_quarantined(run, bad.hash))
        assert await factor(gateway) == (1.0, old)
        assert len(named(replica, "reload.admit")) == 2
        good = put(run, 3)
        await gateway.control("reload")
        await gateway.serves(good)
        await gateway.close()


async def test_a_starting_replica_passes_over_what_is_in_quarantine(serve, run):
    old = put(run, 1)
    bad = commit_model(run, 2, Scale(2.0))
    publish(run, "stable", 2)
    quarantine(run, bad.hash, {"reason": "somebody found it"})
    async with serve(FOLLOW, poll_s=0.02) as replica:
        gateway = await Gateway.connect(replica.address)
        assert (await gateway.state("ready")).version == old
        assert named(replica, "reload.load")[0]["version"] == old
        await gateway.close()


@pytest.mark.parametrize(
    ("model", "config", "probe", "said", "quarantined"),
    [
        (Scale(float("nan")), {}, None, "parameter factor holds NaN", True),
        (Scale(2.0), {}, Probe({"x": [[1.0]]}, {"y": [[3.0]]}), "output 'y' is not what", True),
        (Scale(2.0), {"size": 1}, None, "TypeError", False),
    ],
)
async def test_what_does_not_verify_never_serves(
    serve, run, model, config, probe, said, quarantined
):
    old = put(run, 1, Scale(1.0), probe=Probe({"x": [[1.0], [2.0]]}, {"y": [[1.0], [2.0]]}))
    async with serve(FOLLOW, poll_s=0.02) as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        bad = commit_model(run, 2, model, probe=probe, **config)
        publish(run, "stable", 2)
        await gateway.until(lambda: bad.version in gateway.statuses[-1].reason)
        assert said in gateway.statuses[-1].reason
        assert (gateway.statuses[-1].state, gateway.statuses[-1].version) == ("ready", old)
        await eventually(lambda: is_quarantined(run, bad.hash) == quarantined)
        assert bad.version not in {status.version for status in gateway.statuses}
        await gateway.close()


async def test_nothing_that_can_be_served_is_a_failed_replica_until_there_is(serve, run):
    put(run, 1, Scale(1.0), size=1)
    async with serve(FOLLOW, poll_s=0.02) as replica:
        gateway = await Gateway.connect(replica.address)
        status = await gateway.state("failed")
        assert "TypeError" in status.reason
        put(run, 2)
        assert (await gateway.state("ready")).reason == ""
        await gateway.close()


async def test_a_version_that_raises_where_the_old_one_does_not_is_rolled_back(serve, run):
    old = put(run, 1)
    async with serve(FOLLOW, poll_s=0.02, probation_s=60) as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        new = put(run, 2, picky=True)
        await gateway.serves(new)
        assert await factor(gateway) == (2.0, new)
        answers, version = await gateway.ask(Scale.signature, x(1.0), x(-1.0))
        assert [answer["y"].item() for answer in answers] == [1.0, -1.0]
        assert version == old
        await gateway.serves(old)
        await gateway.until(lambda: gateway.statuses[-1].reload == "idle")
        assert "it fails where" in gateway.statuses[-1].reason
        assert named(replica, "reload.rollback")[0]["version"] == new
        # Not a fact about the bytes: refused here, not in quarantine, and not tried again.
        assert not list(run.quarantine.glob("*"))
        await gateway.control("status")
        assert len(named(replica, "reload.admit")) == 2
        await gateway.control("reload")
        await gateway.serves(new)
        await gateway.close()


async def test_a_version_that_is_grossly_slower_is_rolled_back(serve, run):
    old = put(run, 1, Slow(1.0))
    async with serve(FOLLOW, poll_s=0.02, probation_s=60) as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        for _ in range(20):
            await factor(gateway)
        new = put(run, 2, Slow(2.0), seconds=0.05)
        await gateway.serves(new)
        for _ in range(25):
            await factor(gateway)
        await gateway.serves(old)
        assert "times as long" in named(replica, "reload.rollback")[0]["reason"]
        await gateway.close()


async def test_an_operator_rolls_back(serve, run):
    old = put(run, 1)
    async with serve(FOLLOW, poll_s=0.02, probation_s=0) as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        frame = await gateway.control("rollback", version=old)
        assert (frame.kind, frame.json()["code"]) == (Kind.ERROR, "conflict")
        new = put(run, 2)
        await gateway.serves(new)
        await gateway.until(lambda: gateway.statuses[-1].reload == "idle")
        assert (gateway.statuses[-1].goal, gateway.statuses[-1].goal_generation) == (new, 2)
        assert (await gateway.control("rollback", version=new)).kind == Kind.REPLY
        status = await gateway.serves(old)
        assert (status.state, status.goal, status.goal_generation) == ("ready", old, 1)
        assert await factor(gateway) == (1.0, old)
        await gateway.close()


async def test_an_operator_rolls_back_from_what_it_has_not_seen_yet(serve, run):
    old = put(run, 1)
    async with serve(FOLLOW, poll_s=60, probation_s=0) as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        better = put(run, 2)
        await gateway.control("reload")
        await gateway.serves(better)
        bad = put(run, 3)
        assert (await gateway.control("rollback", version=bad)).kind == Kind.REPLY
        replica._standing.follower._watching.look_again()  # as time would
        await gateway.until(lambda: bad in gateway.statuses[-1].refused)
        assert "operator" in named(replica, "reload.refused")[0]["reason"]
        assert await factor(gateway) == (2.0, better)
        await gateway.control("reload")  # an operator has it tried again
        await gateway.serves(bad)
        assert old not in gateway.statuses[-1].versions
        await gateway.close()


async def test_another_signature_takes_over(serve, run):
    put(run, 1)
    async with serve(FOLLOW, poll_s=0.02, probation_s=0.2) as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        new = put(run, 2, Wider(2.0))
        status = await gateway.serves(new)
        assert [spec["name"] for spec in status.signature["outputs"]] == ["y", "z"]
        assert await factor(gateway, Wider.signature) == (2.0, new)
        await gateway.until(lambda: gateway.statuses[-1].reload == "idle")
        await gateway.close()


async def test_a_pin_that_waits_while_its_version_goes_is_refused(serve, run):
    Gate.reset()
    old = put(run, 1, Gate(1.0))
    async with serve(FOLLOW, poll_s=0.02, probation_s=0) as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        running = gateway.execute(Scale.signature, [x(1.0)])
        await asyncio.to_thread(Gate.entered.wait, 30)
        waiting = gateway.execute(Scale.signature, [x(1.0)])
        pinned = gateway.execute(Scale.signature, [x(1.0)], version=old)
        new = put(run, 2)
        await gateway.until(lambda: gateway.statuses[-1].reload == "swap")
        Gate.open.set()
        assert (await gateway.answer(running)).json()["version"] == old
        assert (await gateway.answer(waiting)).json()["version"] == new
        frame = await gateway.answer(pinned)
        # The release follows the swap; the pinned frame runs in between, or is told.
        assert frame.json().get("version") == old or frame.json()["status"] == 404
        await gateway.close()


async def test_the_latest_wins_while_a_load_is_on_its_way(serve, run):
    put(run, 1)
    weight = Scale(2.0)
    weight.register_parameter("ballast", torch.nn.Parameter(torch.ones(50_000_000 // 4)))
    async with serve(
        FOLLOW, poll_s=0.02, probation_s=0, load_bytes_per_second=10_000_000
    ) as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        put(run, 2, weight)
        await gateway.until(lambda: gateway.statuses[-1].reload == "load")
        newest = put(run, 3)
        await gateway.serves(newest)
        assert len(named(replica, "reload.cancelled")) == 1
        await gateway.close()


async def test_a_channel_that_cannot_be_read_is_told_and_the_old_version_serves_on(serve, run):
    old = put(run, 1)
    async with serve(FOLLOW, poll_s=0.02) as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        path = run.channels / "stable.json"
        whole = path.read_bytes()
        path.write_text(json.dumps({"name": "stable"}))
        await gateway.until(lambda: "stable.json" in gateway.statuses[-1].reason)
        assert gateway.statuses[-1].state == "ready"
        assert await factor(gateway) == (1.0, old)
        path.write_bytes(whole)
        await gateway.until(lambda: gateway.statuses[-1].reason == "")
        await gateway.close()


async def test_nothing_is_left_of_a_version_that_was_let_go(serve, run):
    old = put(run, 1)
    async with serve(FOLLOW, poll_s=0.02, probation_s=0.1) as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        await factor(gateway)
        model = weakref.ref(replica._standing.versions[old].model)
        gc.disable()  # by counting alone: no cycle keeps a model's memory until the collector comes
        try:
            await gateway.serves(put(run, 2))
            await eventually(lambda: model() is None)
        finally:
            gc.enable()
        await gateway.close()


async def test_no_answer_is_mixed_while_versions_come_and_go(serve, run):
    put(run, 1)
    async with serve(FOLLOW, poll_s=0.01, probation_s=0.05) as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        factors, done = {}, asyncio.Event()

        async def ask():
            while not done.is_set():
                id = gateway.execute(Scale.signature, [x(1.0), x(1.0, 1.0), x(1.0)])
                frame = await gateway.answer(id)
                got = {
                    value for answer in unpack(frame) for value in answer["y"].flatten().tolist()
                }
                gateway.frames.remove(frame)
                factors.setdefault(frame.json()["version"], set()).update(got)

        clients = [asyncio.create_task(ask()) for _ in range(4)]
        versions = {}
        for step in range(2, 6):
            version = await asyncio.to_thread(put, run, step)
            versions[version] = {float(step)}
            await gateway.serves(version)
            await gateway.until(lambda: gateway.statuses[-1].reload == "idle")
        done.set()
        await asyncio.gather(*clients)
        assert len(factors) >= 4
        for version, got in factors.items():
            assert got == {float(version.partition("-")[0])}
        assert all(status.state == "ready" for status in gateway.statuses if status.version)
        await gateway.close()


async def test_a_steered_replica_waits_for_its_turn(serve, run):
    old = put(run, 1)
    async with serve(FOLLOW, poll_s=0.02, probation_s=0) as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        await gateway.control("steer")
        new = put(run, 2)
        await gateway.until(lambda: gateway.statuses[-1].reload == "ready")
        status = gateway.statuses[-1]
        assert (status.version, status.reload_to, status.channel) == (old, new, "stable")
        assert await factor(gateway) == (1.0, old)
        refused = await gateway.control("swap", version="9-none")
        assert refused.kind == Kind.ERROR and refused.json()["code"] == "conflict"
        await gateway.control("swap", version=new)
        await gateway.serves(new)
        assert await factor(gateway) == (2.0, new)
        await gateway.control("steer")
        third = put(run, 3)
        await gateway.until(lambda: gateway.statuses[-1].reload_to == third)
        await gateway.control("refuse", version=third, reason="slow elsewhere")
        await gateway.until(lambda: gateway.statuses[-1].refused == (third,))
        assert "slow elsewhere" in gateway.statuses[-1].reason
        for arguments in ({}, {"version": new, "more": "x"}, {"version": 3}):
            wrong = await gateway.control("swap", **arguments)
            assert wrong.kind == Kind.ERROR and wrong.json()["status"] == 400
        await gateway.close()


async def test_without_a_gateway_a_steered_replica_goes_on_alone(serve, run):
    put(run, 1)
    async with serve(FOLLOW, poll_s=0.02, ask_s=0.3) as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        await gateway.control("steer")
        new = put(run, 2)
        await gateway.serves(new)
        assert named(replica, "reload.alone")
        await gateway.close()


async def test_a_replica_moves_a_channel_to_where_another_is(serve, run):
    old = put(run, 1)
    async with serve(FOLLOW, poll_s=0.02, probation_s=0) as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        new = commit_model(run, 2, Scale(2.0)).version
        publish(run, "canary", 2)
        arguments = {"channel": "stable", "like": "canary", "version": new, "before": old}
        for wrong in ({"version": old}, {"before": new}, {"like": "nowhere"}):
            said = await gateway.control("point", **{**arguments, **wrong})
            assert said.kind == Kind.ERROR and said.json()["code"] == "conflict"
        moved = await gateway.control("point", **arguments)
        assert moved.json() == {"channel": "stable", "version": new, "generation": 2}
        await gateway.serves(new)
        again = await gateway.control("point", **{**arguments, "before": ""})
        assert again.json()["generation"] == 2
        await gateway.close()


async def test_a_version_is_exchanged_in_place_and_back(serve, run):
    """Where the device has no room for two: the weights trade places, the addresses stay."""
    old = put(run, 1)
    async with serve(FOLLOW, poll_s=0.02, probation_s=0.3, tier="exchange") as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        place = replica._standing.serving.model.factor.data_ptr()
        new = put(run, 2)
        status = await gateway.serves(new)
        # The old one is kept for going back, and runs nothing meanwhile.
        assert (status.reload, status.versions) == ("probation", (new,))
        assert await factor(gateway) == (2.0, new)
        assert replica._standing.serving.model.factor.data_ptr() == place
        await gateway.control("rollback", version=new)
        status = await gateway.serves(old)
        assert status.versions == (old,)
        assert await factor(gateway) == (1.0, old)
        assert replica._standing.serving.model.factor.data_ptr() == place
        newest = put(run, 3)
        await gateway.serves(newest)
        await gateway.until(lambda: gateway.statuses[-1].reload == "idle")
        assert await factor(gateway) == (3.0, newest)
        await eventually(lambda: len(live_leases(run)) == 1)
        await gateway.close()


async def test_a_version_for_which_only_a_new_process_has_room_is_named(serve, run):
    old = put(run, 1)
    async with serve(FOLLOW, poll_s=0.02, tier="process") as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        new = put(run, 2)
        await gateway.until(lambda: gateway.statuses[-1].crowded == new)
        status = gateway.statuses[-1]
        assert (status.state, status.version, status.reload) == ("ready", old, "idle")
        assert "a process of its own" in status.reason
        assert await factor(gateway) == (1.0, old)
        # It does not insist when the channel goes back.
        rollback(run, "stable")
        await gateway.until(lambda: not gateway.statuses[-1].crowded)
        await gateway.close()


async def test_a_stated_memory_that_only_one_version_fits_in(serve, run):
    old = put(run, 1)
    async with serve(FOLLOW, poll_s=0.02, memory=6) as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        new = put(run, 2)
        await gateway.until(lambda: gateway.statuses[-1].crowded == new)
        assert await factor(gateway) == (1.0, old)
        await gateway.close()
