"""Clients that people use, on real sockets, against models with replicas that can misbehave."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import orjson
import pytest
import websockets

from gateway.config import parse
from gateway.fleet import Fleet
from gateway.lane import Lane
from gateway.ws import SocketLimits, WebSocketSurface
from tests.gateway.fakes import FakeReplica, until
from tests.gateway.lane.conftest import listening
from tests.gateway.oip.fakes import FakeDirectory
from tests.gateway.ws.fakes import handshake, infer
from tests.gateway.ws.test_limits import wordy
from tests.gateway.ws.test_socket import held

MIB = 1 << 20


@asynccontextmanager
async def serving(folder: Path, count: int = 1):
    """(model, fakes, fleet): the model "double" with replicas that are ready."""
    fakes = [FakeReplica(folder / f"r{number}.sock") for number in range(count)]
    text = '[[models]]\nname = "double"\n'
    for number, fake in enumerate(fakes):
        await fake.start()
        text += f'[[models.replicas]]\nname = "r-{number}"\naddress = "{fake.address}"\n'
    fleet = Fleet(
        parse(text, folder / "serve.toml", {}),
        folder,
        gateway="test",
        switch=lambda op, model, done: done(None),
        loop=asyncio.get_running_loop(),
        rng=random.Random(0),
    )
    model = fleet.model("double")
    try:
        await until(lambda: all(replica.ready for replica in model.replicas))
        yield model, fakes, fleet
    finally:
        await fleet.close()
        for fake in fakes:
            await fake.stop()


def balance(model) -> dict[str, int]:
    counters = model.status()["counters"]
    ended = counters["done"] + counters["failed"] + counters["cancelled"]
    assert counters["accepted"] == ended + counters["live"]
    return counters


def ask(number: int) -> str:
    x = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [number, 0.5]}
    document = {"type": "infer", "id": str(number), "model_name": "double", "inputs": [x]}
    return orjson.dumps(document).decode()


def check(document: dict) -> str:
    assert document["type"] == "result", document
    assert document["outputs"][0]["data"] == [2 * int(document["id"]), 1.0]
    return document["id"]


@asynccontextmanager
async def reachable(directory, limits: SocketLimits | None = None):
    """(surface, port): the surface on a lane that listens."""
    surface = WebSocketSurface(directory, limits)
    async with listening(Lane(surface.resolve)) as port:
        try:
            yield surface, port
        finally:
            await surface.drain(0.2)
    assert surface.held == 0 and surface.stats.open == 0


@asynccontextmanager
async def connected(port: int, **options):
    async with websockets.connect(f"ws://127.0.0.1:{port}/ws", **options) as client:
        yield client


async def test_websockets_pipelines_on_one_socket(tmp_path):
    async with serving(tmp_path, 2) as (model, _, fleet):
        async with reachable(fleet) as (surface, port), connected(port) as ws:
            for number in range(200):
                await ws.send(ask(number))
            got = [check(orjson.loads(await ws.recv())) for _ in range(200)]
            assert sorted(got, key=int) == [str(number) for number in range(200)]
            assert await (await ws.ping()) >= 0
            assert surface.stats.received == 200
        assert balance(model)["done"] == 200
        assert sum(s.successes for s in model.stats.versions.values()) == 200


async def test_aiohttp_sends_tensors_as_they_are(tmp_path):
    async with (
        serving(tmp_path) as (_, _, fleet),
        reachable(fleet) as (_, port),
        aiohttp.ClientSession() as session,
        session.ws_connect(
            f"http://127.0.0.1:{port}/ws", compress=15, protocols=["penstock.v1"]
        ) as ws,
    ):
        assert ws.protocol == "penstock.v1" and not ws.compress
        x = {"name": "x", "shape": [1, 2], "datatype": "FP32"}
        x["parameters"] = {"binary_data_size": 8}
        head = orjson.dumps(
            {
                "type": "infer",
                "id": "t",
                "model_name": "double",
                "inputs": [x],
                "parameters": {"binary_data_output": True},
            }
        )
        await ws.send_bytes(struct.pack("<I", len(head)) + head + struct.pack("<2f", 4, 5))
        answer = await ws.receive_bytes()
        end = 4 + struct.unpack_from("<I", answer)[0]
        assert orjson.loads(answer[4:end])["id"] == "t"
        assert struct.unpack("<2f", answer[end:]) == (8, 10)


async def test_a_large_message_in_fragments(tmp_path):
    async with (
        serving(tmp_path) as (_, _, fleet),
        reachable(fleet) as (_, port),
        connected(port) as ws,
    ):
        text = ask(7)
        padded, size = text[:-1] + " " * (2 * MIB) + "}", 100_000
        await ws.send(padded[start : start + size] for start in range(0, len(padded), size))
        assert check(orjson.loads(await ws.recv())) == "7"


async def test_a_message_that_is_too_large_closes_with_1009(tmp_path):
    limits = SocketLimits(max_message=MIB)
    async with (
        serving(tmp_path) as (_, _, fleet),
        reachable(fleet, limits) as (_, port),
        connected(port) as ws,
    ):
        with pytest.raises(websockets.ConnectionClosedError) as caught:
            await ws.send("x" * (3 * MIB))
            await ws.recv()
        assert caught.value.rcvd.code == 1009


async def test_a_replica_that_dies_loses_no_request(tmp_path):
    async with serving(tmp_path, 2) as (model, fakes, fleet), reachable(fleet) as (_, port):
        async with connected(port) as ws:
            for fake in fakes:
                fake.held = []
            for number in range(60):
                await ws.send(ask(number))
            await until(lambda: fakes[0].held and fakes[1].held)
            await fakes[0].stop()
            fakes[1].release()
            got = {check(orjson.loads(await ws.recv())) for _ in range(60)}
            assert len(got) == 60
        balance(model)


async def test_a_client_that_leaves_is_counted_and_its_work_cancelled(tmp_path):
    async with serving(tmp_path) as (model, (fake,), fleet), reachable(fleet) as (surface, port):
        fake.held = []
        async with connected(port) as ws:
            for number in range(20):
                await ws.send(ask(number))
            await until(lambda: balance(model)["accepted"] == 20 and fake.held)
            ws.transport.abort()
        await until(lambda: balance(model)["cancelled"] == 20)
        balance(model)
        assert surface.stats.abandoned == 20 and dict(surface.stats.closed) == {1006: 1}


async def test_cancelled_by_id(tmp_path):
    async with serving(tmp_path) as (model, (fake,), fleet), reachable(fleet) as (_, port):
        fake.held = []
        async with connected(port) as ws:
            await ws.send(ask(1))
            await until(lambda: fake.held)
            await ws.send('{"type":"cancel","id":"1"}')
            error = orjson.loads(await ws.recv())
            assert (error["id"], error["code"]) == ("1", "cancelled")
            await until(lambda: fake.cancelled)
        balance(model)


async def test_a_reader_that_sleeps_slows_only_itself():
    directory = FakeDirectory(wordy(4 * MIB))
    async with reachable(directory) as (surface, port):
        loop = asyncio.get_running_loop()
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.setblocking(False)
            await loop.sock_connect(slow, ("127.0.0.1", port))
            await loop.sock_sendall(slow, handshake())
            assert b" 101 " in await loop.sock_recv(slow, 4096)
            await loop.sock_sendall(slow, infer("a") + infer("b"))
            await until(lambda: surface.stats.sent == 2)
            # Its answers wait here; what it asks now is not even read.
            await loop.sock_sendall(slow, infer("c"))
            async with connected(port, max_size=None) as ws:
                for number in range(5):
                    x = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
                    ask = {"type": "infer", "id": str(number), "model_name": "simple"}
                    await ws.send(orjson.dumps({**ask, "inputs": [x]}).decode())
                    assert orjson.loads(await ws.recv())["id"] == str(number)
            assert surface.held > 4 * MIB and surface.stats.sent == 7
            # It wakes up: everything is there.
            got = 0
            while got < 3 * 4 * MIB:
                got += len(await loop.sock_recv(slow, MIB))
            assert surface.stats.sent == 8


async def test_a_drain_finishes_what_runs_and_says_1001():
    model = held()
    async with (
        reachable(FakeDirectory(model)) as (surface, port),
        connected(port) as idle,
        connected(port) as busy,
    ):
        x = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
        ask = {"type": "infer", "id": "a", "model_name": "simple", "inputs": [x]}
        await busy.send(orjson.dumps(ask).decode())
        await until(lambda: model.submitted)
        draining = asyncio.create_task(surface.drain(20))
        with pytest.raises(websockets.ConnectionClosedOK) as caught:
            await idle.recv()
        assert caught.value.rcvd.code == 1001
        model.release(model.submitted[0])
        assert orjson.loads(await busy.recv())["type"] == "result"
        with pytest.raises(websockets.ConnectionClosedOK) as caught:
            await busy.recv()
        assert caught.value.rcvd.code == 1001
        await draining


async def test_a_client_closes_politely():
    async with reachable(FakeDirectory()) as (surface, port), connected(port) as ws:
        await ws.close(4000, "done")
        assert ws.close_code == 4000
        await until(lambda: not surface.stats.open)
        assert dict(surface.stats.closed) == {3000: 1}


async def test_a_page_from_elsewhere_is_refused():
    async with reachable(FakeDirectory()) as (_, port):
        with pytest.raises(websockets.InvalidStatus) as caught:
            async with connected(port, origin="https://evil.example"):
                raise AssertionError("it was let in")
        assert caught.value.response.status_code == 403
