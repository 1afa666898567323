"""Several workers on one port: one gateway to clients and operators, whichever worker they meet."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import struct

import aiohttp
import pytest

from tests.e2e.fleet import get_json
from tests.e2e.test_loop import Stamped, until
from tests.e2e.traffic import ask

WORKERS = 3
NONE: dict[str, str] = {}


@pytest.fixture(scope="module")
def stamped(tmp_path_factory):
    served = Stamped(tmp_path_factory.mktemp("workers"), workers=WORKERS)
    served.gateway.wait_ready()
    yield served
    assert served.gateway.stop() == 0, served.gateway.log


class Client:
    """One keep-alive connection, hence one worker."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def call(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] = NONE
    ) -> tuple[int, bytes]:
        self.connection.request(method, path, body, headers)
        reply = self.connection.getresponse()
        return reply.status, reply.read()

    def infer(self) -> int:
        raw = {"inference-header-content-length": "0"}
        return self.call("POST", "/v2/models/stamp/infer", struct.pack("<f", 1.0), raw)[0]


@pytest.fixture
def connect(stamped):
    """Makes clients; all are closed when the test ends."""
    made: list[Client] = []

    def clients(count: int) -> list[Client]:
        new = [Client(stamped.gateway.port) for _ in range(count)]
        made.extend(new)
        return new

    yield clients
    for client in made:
        client.connection.close()


async def test_all_workers_share_the_port_and_their_counts_add_up(stamped, connect):
    await until("the replicas", stamped.all_ready)
    clients = connect(24)
    for client in clients:
        assert await asyncio.to_thread(client.infer) == 200
    status = stamped.gateway.status()
    assert len({worker["pid"] for worker in status["workers"]}) == WORKERS
    counted = set()
    for client in clients[:8]:
        _, body = await asyncio.to_thread(client.call, "GET", "/v2/models/stamp/stats")
        counted.add(json.loads(body)["model_stats"][0]["inference_count"])
    assert counted == {24}
    assert status["models"][0]["counters"]["done"] == 24


async def test_unloading_holds_in_every_worker_and_loading_ends_it(stamped, connect):
    await until("the replicas", stamped.all_ready)
    clients = connect(12)
    path = "/v2/repository/models/stamp"
    assert (await asyncio.to_thread(clients[0].call, "POST", f"{path}/unload"))[0] == 200
    assert {await asyncio.to_thread(client.infer) for client in clients} == {503}
    # Also in a worker that comes later.
    victim = stamped.gateway.status()["workers"][0]["pid"]
    os.kill(victim, signal.SIGKILL)
    await until(
        "the worker's successor",
        lambda: all(
            worker["state"] == "ready" and worker["pid"] != victim
            for worker in stamped.gateway.status()["workers"]
        ),
    )
    fresh = connect(12)
    assert {await asyncio.to_thread(client.infer) for client in fresh} == {503}
    assert (await asyncio.to_thread(fresh[0].call, "POST", f"{path}/load"))[0] == 200
    assert {await asyncio.to_thread(client.infer) for client in fresh} == {200}


async def test_a_killed_worker_takes_only_its_own_connections(stamped):
    await until("the replicas", stamped.all_ready)
    victim = stamped.gateway.status()["workers"][1]["pid"]
    lasting: list[bool] = []

    async def one() -> None:
        """Asks again and again on one connection; says whether it lasted."""
        connector = aiohttp.TCPConnector(limit=1)
        async with aiohttp.ClientSession(connector=connector) as session:
            try:
                for _ in range(60):
                    await ask(session, stamped.gateway.url, 1.0)
                    await asyncio.sleep(0.02)
            except (aiohttp.ClientError, ConnectionError):
                lasting.append(False)
            else:
                lasting.append(True)

    async with asyncio.TaskGroup() as group:
        for _ in range(24):
            group.create_task(one())
        await asyncio.sleep(0.4)
        os.kill(victim, signal.SIGKILL)
    assert any(lasting)

    def replaced() -> bool:
        workers = get_json(f"{stamped.gateway.admin}/status")["workers"]
        return victim not in {w["pid"] for w in workers} and all(
            w["state"] == "ready" for w in workers
        )

    await until("the worker's successor", replaced)
    async with aiohttp.ClientSession() as session:
        for _ in range(24):
            await ask(session, stamped.gateway.url, 1.0)


async def test_a_stop_answers_every_connection_and_tells_it_to_close(tmp_path):
    served = Stamped(tmp_path)
    served.gateway.wait_ready()
    await until("the replicas", served.all_ready)

    async def one(session: aiohttp.ClientSession) -> int:
        """Requests on one connection until it is told to close; how many were answered."""
        for count in range(1, 100_000):
            raw = {"inference-header-content-length": "0"}
            url = f"{served.gateway.url}/v2/models/stamp/infer"
            async with session.post(url, data=struct.pack("<f", 1.0), headers=raw) as reply:
                await reply.read()
                assert reply.status == 200
                if reply.headers.get("connection") == "close":
                    return count
        raise AssertionError("never told to close")

    async with asyncio.TaskGroup() as group:
        sessions = [
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) for _ in range(8)
        ]
        counts = [group.create_task(one(session)) for session in sessions]
        await asyncio.sleep(0.5)
        group.create_task(asyncio.to_thread(served.gateway.stop))
    for session in sessions:
        await session.close()
    assert min(count.result() for count in counts) > 1
