"""A new process in a replica's place, under traffic, where there is only this one replica."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest

from tests.e2e.fleet import GatewayProcess, get_json
from tests.e2e.publishing import publish_stamp, replica_file
from tests.e2e.test_loop import until
from tests.e2e.traffic import steady


@pytest.fixture
def alone(tmp_path):
    """A gateway over one replica."""
    publish_stamp(tmp_path / "run", 1)
    file = replica_file(tmp_path, tmp_path / "run")
    gateway = GatewayProcess(
        tmp_path,
        f'[[models]]\nname = "stamp"\n[[models.replicas]]\nname = "stamp"\nspawn = "{file}"\n',
    )
    gateway.wait_ready()
    yield gateway
    assert gateway.stop() == 0, gateway.log


async def replaced(gateway) -> int:
    command = [sys.executable, "-m", "gateway", "replace", "stamp", "--admin", gateway.admin]
    process = await asyncio.create_subprocess_exec(*command)
    return await process.wait()


async def test_the_only_replica_is_replaced_under_traffic(alone, tmp_path):
    (before,) = alone.replicas()
    async with steady(alone.url, rate=100) as record:
        await until("some answers", lambda: len(record.answers) > 30)
        publish_stamp(tmp_path / "run", 2)
        assert await replaced(alone) == 0
        count = len(record.answers)
        await until("answers of the new process", lambda: len(record.answers) > count + 30)
    (after,) = alone.replicas()
    assert record.failures == []
    assert after["pid"] != before["pid"] and after["state"] == "ready"
    assert all(answer.stamp == float(answer.version.split("-")[0]) for answer in record.answers)
    counters = alone.status()["models"][0]["counters"]
    assert counters["accepted"] == counters["done"] and counters["live"] == 0
    with pytest.raises(ProcessLookupError):
        os.kill(before["pid"], 0)


async def test_a_file_of_which_nothing_would_come_leaves_the_old_process_in_its_place(
    alone, tmp_path
):
    (before,) = alone.replicas()
    file = tmp_path / "stamp.replica.toml"
    good = file.read_text()
    async with steady(alone.url, rate=100) as record:
        file.write_text(good + "nonsense = 1\n")
        os.kill(alone.process.pid, signal.SIGHUP)
        await until("the refusal", lambda: "nonsense: unknown key" in alone.log)
        assert alone.replicas()[0]["pid"] == before["pid"]
        file.write_text(good + "slots = 3\n")
        os.kill(alone.process.pid, signal.SIGHUP)
        await until("the new one", lambda: alone.replicas()[0].get("slots") == 3)
    assert record.failures == []
    assert alone.replicas()[0]["pid"] != before["pid"]


async def test_replicas_without_room_for_two_versions_take_the_next_one_in_turn(tmp_path):
    publish_stamp(tmp_path / "run", 1)
    file = replica_file(tmp_path, tmp_path / "run", tier="process", poll_s=0.05)
    gateway = GatewayProcess(
        tmp_path,
        '[[models]]\nname = "stamp"\n[[models.replicas]]\n'
        f'name = "stamp"\ncount = 2\nspawn = "{file}"\n',
    )
    gateway.wait_ready()
    await until("both", lambda: {r["state"] for r in gateway.replicas()} == {"ready"})
    before = {replica["pid"] for replica in gateway.replicas()}
    async with steady(gateway.url, rate=80) as record:
        version = publish_stamp(tmp_path / "run", 2)
        await until("the version", lambda: {r["version"] for r in gateway.replicas()} == {version})
    assert record.failures == []
    assert not before & {replica["pid"] for replica in gateway.replicas()}
    assert len(record.versions()) == 2
    assert all(answer.stamp == float(answer.version.split("-")[0]) for answer in record.answers)
    assert gateway.stop() == 0, gateway.log


async def test_the_only_replica_is_not_ended_for_lack_of_room(tmp_path):
    first = publish_stamp(tmp_path / "run", 1)
    file = replica_file(tmp_path, tmp_path / "run", tier="process", poll_s=0.05)
    gateway = GatewayProcess(
        tmp_path,
        f'[[models]]\nname = "stamp"\n[[models.replicas]]\nname = "stamp"\nspawn = "{file}"\n',
    )
    gateway.wait_ready()
    publish_stamp(tmp_path / "run", 2)
    events = f"{gateway.admin}/events"
    await until("a word on it", lambda: "or a second replica" in str(get_json(events)))
    assert [replica["version"] for replica in gateway.replicas()] == [first]
    assert gateway.stop() == 0, gateway.log
