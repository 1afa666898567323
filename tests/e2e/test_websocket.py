"""WebSocket clients of a real gateway: replicas killed, sockets dropped, the gateway stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import struct
from collections.abc import AsyncIterator

import aiohttp
import orjson
import pytest
import websockets

from tests.e2e.fleet import get_json
from tests.e2e.models.stamp import SLOW, UNLUCKY
from tests.e2e.test_loop import Stamped, until


@pytest.fixture(scope="module")
def stamped(tmp_path_factory):
    served = Stamped(tmp_path_factory.mktemp("websocket"))
    served.gateway.wait_ready()
    yield served
    assert served.gateway.stop() == 0, served.gateway.log


def address(stamped: Stamped) -> str:
    return stamped.gateway.url.replace("http", "ws") + "/ws"


def ask(name: str, value: float, **more: object) -> str:
    x = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [value]}
    document = {"type": "infer", "id": name, "model_name": "stamp", "inputs": [x], **more}
    return orjson.dumps(document).decode()


class Pipe:
    """Keeps `depth` requests in flight on one socket; every terminal message is kept by id."""

    def __init__(self, ws: websockets.ClientConnection, depth: int = 64) -> None:
        self.ws, self.depth = ws, depth
        self.sent = 0
        self.ended: dict[str, dict] = {}
        self.stopping = False

    async def run(self) -> None:
        for _ in range(self.depth):
            await self._send()
        while len(self.ended) < self.sent:
            message = orjson.loads(await self.ws.recv())
            assert message["id"] not in self.ended, "a second terminal message"
            self.ended[message["id"]] = message
            if not self.stopping:
                await self._send()

    async def _send(self) -> None:
        number, self.sent = self.sent, self.sent + 1
        await self.ws.send(ask(str(number), number % 10))

    def check(self) -> None:
        assert len(self.ended) == self.sent >= self.depth
        for name, message in self.ended.items():
            assert message["type"] == "result", message
            value, stamp = message["outputs"][0]["data"]
            assert value == int(name) % 10
            assert message["model_version"].split("-")[0] == str(int(stamp))


@contextlib.asynccontextmanager
async def piping(stamped: Stamped) -> AsyncIterator[Pipe]:
    """A pipe that runs while the block does; on leaving, all that was sent has ended."""
    async with websockets.connect(address(stamped)) as ws:
        pipe = Pipe(ws)
        task = asyncio.create_task(pipe.run())
        try:
            yield pipe
        finally:
            pipe.stopping = True
            async with asyncio.timeout(40):
                await task
    pipe.check()


async def test_a_killed_replica_costs_no_request(stamped):
    await until("both replicas", stamped.all_ready)
    async with piping(stamped) as pipe:
        victim = stamped.gateway.replicas()[0]
        await until("some answers", lambda: len(pipe.ended) > 500)
        os.kill(victim["pid"], signal.SIGKILL)

        def replaced() -> bool:
            replica = stamped.gateway.replicas()[0]
            return replica["state"] == "ready" and replica["pid"] != victim["pid"]

        await until("the replica to come back", replaced)
    assert {message["served_by"] for message in pipe.ended.values()} == {"stamp-0", "stamp-1"}


async def test_aiohttp_with_tensors_as_they_are(stamped):
    await until("both replicas", stamped.all_ready)
    x = {"name": "x", "shape": [1, 1], "datatype": "FP32", "parameters": {"binary_data_size": 4}}
    head = orjson.dumps(
        {
            "type": "infer",
            "id": "b",
            "model_name": "stamp",
            "inputs": [x],
            "parameters": {"binary_data_output": True},
        }
    )
    message = struct.pack("<I", len(head)) + head + struct.pack("<f", 5)
    async with aiohttp.ClientSession() as session, session.ws_connect(address(stamped)) as ws:
        await ws.send_bytes(message)
        answer = await ws.receive_bytes()
        end = 4 + struct.unpack_from("<I", answer)[0]
        assert orjson.loads(answer[4:end])["id"] == "b"
        assert struct.unpack("<2f", answer[end:]) == (5, 1)


async def test_one_bad_item_one_cancelled_and_one_late_fail_alone(stamped):
    await until("both replicas", stamped.all_ready)
    async with websockets.connect(address(stamped)) as ws:
        await ws.send(ask("slow", SLOW + 400))
        await ws.send(ask("cancelled", SLOW + 400))
        await ws.send(ask("late", SLOW + 400, deadline_ms=50))
        await ws.send('{"type":"cancel","id":"cancelled"}')
        await ws.send(ask("unlucky", UNLUCKY))
        await ws.send(ask("pinned", 1, model_version=stamped.first))
        await ws.send(ask("unknown", 1, model_version="77"))
        async with asyncio.timeout(30):
            messages = [orjson.loads(await ws.recv()) for _ in range(6)]
    codes = {message["id"]: message.get("code", "result") for message in messages}
    assert codes == {
        "slow": "result", "cancelled": "cancelled", "late": "deadline_exceeded",
        "unlucky": "model_error", "pinned": "result", "unknown": "not_found",
    }  # fmt: skip


async def test_a_client_that_breaks_off_is_counted_as_cancelled(stamped):
    await until("the last answers", lambda: stamped.counters()["live"] == 0)
    before = stamped.counters()["cancelled"]
    async with websockets.connect(address(stamped)) as ws:
        for number in range(10):
            await ws.send(ask(str(number), SLOW + 300))
        await until("them all", lambda: stamped.counters()["live"] == 10)
        ws.transport.abort()
    await until("the count", lambda: stamped.counters()["cancelled"] == before + 10)
    await until("the last answers", lambda: stamped.counters()["live"] == 0)
    counters = stamped.counters()
    assert counters["accepted"] == counters["done"] + counters["failed"] + counters["cancelled"]


async def test_operators_see_the_sockets(stamped):
    async with (
        websockets.connect(address(stamped)),
        aiohttp.ClientSession() as session,
        session.get(f"{stamped.gateway.admin}/metrics") as reply,
    ):
        text = await reply.text()
    assert "penstock_websockets_open 1" in text
    assert 'penstock_websockets_closed_total{code="1006"} 1' in text
    assert get_json(f"{stamped.gateway.url}/v2")["name"] == "penstock"


async def test_a_stop_finishes_what_runs_and_says_1001(stamped):
    await until("both replicas", stamped.all_ready)
    async with (
        websockets.connect(address(stamped)) as idle,
        websockets.connect(address(stamped)) as busy,
    ):
        await busy.send(ask("slow", SLOW + 500))
        await until("it", lambda: stamped.counters()["live"] == 1)
        stamped.gateway.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            with pytest.raises(websockets.ConnectionClosedOK) as caught:
                await idle.recv()
            assert caught.value.rcvd.code == 1001
            assert orjson.loads(await busy.recv())["type"] == "result"
            with pytest.raises(websockets.ConnectionClosedOK) as caught:
                await busy.recv()
            assert caught.value.rcvd.code == 1001
    assert await asyncio.to_thread(stamped.gateway.process.wait, 30) == 0
