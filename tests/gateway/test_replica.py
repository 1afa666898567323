"""The link to a replica: one callback a frame, a new generation a link, nonsense cuts it."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager

import pytest

from backends import wire
from backends.wire import Kind
from gateway.link import Link
from gateway.policy.breaker import Breaker
from gateway.replica import NativeReplica
from tests.gateway.fakes import FakeReplica, until


@asynccontextmanager
async def linked(tmp_path, **fake_options):
    """(replica, fake, changes): connected, and at first of the right model."""
    fake = FakeReplica(tmp_path / "r.sock", **fake_options)
    await fake.start()
    changes: list[str] = []
    replica = NativeReplica(
        "r-0",
        fake.address,
        model="double",
        weight=1.0,
        gateway="test",
        on_change=lambda: changes.append(replica.state),
        breaker=Breaker(),
        rng=random.Random(0),
    )
    task = asyncio.create_task(replica.run())
    try:
        yield replica, fake, changes
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await fake.stop()


async def test_it_is_ready_once_the_replica_says_so(tmp_path):
    async with linked(tmp_path) as (replica, fake, changes):
        await until(lambda: replica.ready)
        assert replica.signature is not None
        assert replica.load.slots == 2
        fake.say(state="draining")
        await until(lambda: not replica.ready)
        assert changes[-2:] == ["ready", "draining"]


async def test_a_lost_link_answers_what_waits_with_none_and_begins_a_new_generation(tmp_path):
    async with linked(tmp_path) as (replica, fake, _):
        await until(lambda: replica.ready)
        fake.held = []
        answers: list[wire.Frame | None] = []
        states: list[bool] = []

        def answered(frame):
            answers.append(frame)
            states.append(replica.ready)  # nobody may be sent there again meanwhile

        generation = replica.load.generation
        for _ in range(3):
            replica.execute({"rows": [1]}, [], answered)
        await until(lambda: len(fake.executed) == 3)
        await fake.stop()
        await until(lambda: len(answers) == 3)
        assert answers == [None] * 3
        assert states == [False] * 3
        assert replica.state == "unreachable"
        await fake.start()
        await until(lambda: replica.ready)
        assert replica.load.generation == generation + 1


async def test_a_replica_of_another_model_is_not_used(tmp_path):
    async with linked(tmp_path, model="triple") as (replica, fake, _):
        await until(lambda: fake.greeted >= 2)
        assert not replica.ready
        assert "triple" in replica.status.reason


@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n" * 2,
        wire.HEADER.pack(wire.MAGIC, wire.VERSION, Kind.STATUS, 2, 0, 0) + b"[]",
        wire.HEADER.pack(wire.MAGIC, 99, Kind.STATUS, 0, 0, 0),
    ],
)
async def test_nonsense_cuts_the_link_and_it_is_made_again(tmp_path, sent):
    async with linked(tmp_path) as (replica, fake, _):
        await until(lambda: replica.ready)
        greeted = fake.greeted
        for connection in fake.connections:
            connection.transport.write(sent)
        await until(lambda: fake.greeted > greeted and replica.ready)


async def test_a_silent_replica_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr("gateway.replica.PING_S", 0.01)
    monkeypatch.setattr("gateway.replica.SILENT_S", 0.03)
    async with linked(tmp_path) as (replica, fake, changes):
        await until(lambda: replica.ready)
        for connection in fake.connections:
            connection.send = lambda buffers: None  # type: ignore[method-assign]
        await until(lambda: "unreachable" in changes)
        await until(lambda: replica.ready)


async def test_service_times_are_learnt_anew_for_each_version(tmp_path):
    async with linked(tmp_path) as (replica, fake, _):
        await until(lambda: replica.ready)
        replica.curve(None).observe(4, 0.5)
        assert replica.curve("1-a").known
        fake.say(version="2-b", versions=("2-b",))
        await until(lambda: replica.status.version == "2-b")
        assert not replica.curve(None).known
        assert set(replica.curves) == {"2-b"}


async def test_frames_cross_a_link_in_any_order(tmp_path):
    fake = FakeReplica(tmp_path / "r.sock")
    await fake.start()
    loop = asyncio.get_running_loop()
    lost: list[str] = []
    heard = asyncio.Event()

    def make() -> Link:
        return Link(
            lambda link, status: heard.set(), lambda link, why: lost.append(why), gateway="test"
        )

    _, link = await loop.create_unix_connection(make, str(fake.path))
    await heard.wait()
    got: list[int] = []
    ids = [link.send(Kind.CONTROL, {}, on_answer=lambda f: got.append(f.id)) for _ in range(4)]
    (connection,) = fake.connections
    for id in reversed(ids):
        connection.send(wire.encode(Kind.REPLY, id, {}))
        connection.send(wire.encode(Kind.REPLY, id, {}))  # a second answer is nobody's
    await until(lambda: len(got) == 4)
    assert got == ids[::-1]
    assert link.in_flight == 0
    link.abort("enough")
    await until(lambda: lost)
    assert lost == ["enough"]
    await fake.stop()
