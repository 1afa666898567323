"""Token streams on /ws: deltas, results, cancels by id, and a version for the whole socket."""

from __future__ import annotations

import asyncio

import orjson
import websockets

from tests.gateway.fake_llm import FakeLLM
from tests.gateway.fakes import until
from tests.gateway.generation.fakes import serving

ASK = {"type": "generate", "model_name": "m", "text_input": "hello"}


async def speak(call):
    call.piece(b'{"text":"a"}\n', type="application/json")
    call.piece(b'{"text":"b"}\n{"text":"c"}\n')
    call.piece(b'{"finish_reason":"stop"}\n', final=True)


def connect(gateway, **more):
    return websockets.connect(f"ws://127.0.0.1:{gateway.port}/ws", **more)


async def say(socket, **fields):
    await socket.send(orjson.dumps({**ASK, **fields}).decode())


async def hear(socket):
    async with asyncio.timeout(20):
        return orjson.loads(await socket.recv())


async def test_each_object_is_a_delta_and_the_last_one_the_result(tmp_path):
    fake = FakeLLM(tmp_path / "a", speak)
    async with serving(tmp_path, fake) as gateway, connect(gateway) as socket:
        await say(socket, id="x", session="s", priority=3, deadline_ms=5000)
        assert [await hear(socket) for _ in range(3)] == [
            {"type": "delta", "id": "x", "text": text} for text in "abc"
        ]
        assert await hear(socket) == {
            "type": "result", "id": "x", "model_name": "m", "model_version": "1-a",
            "served_by": "r0", "finish_reason": "stop",
        }  # fmt: skip
        (call,) = fake.calls
        assert call.document == {"text_input": "hello"}
        assert (call.meta.surface, call.meta.priority, call.meta.request_id) == ("ws", 3, "x")
        assert call.meta.deadline_ms <= 5000
        assert gateway.counters()["done"] == 1


async def test_a_cancel_by_id_reaches_the_replica_and_no_other_stream(tmp_path):
    go = asyncio.Event()

    async def script(call):
        call.piece(b'{"text":"a"}\n', type="application/json")
        await go.wait()
        call.piece(b"{}\n", final=True)

    fake = FakeLLM(tmp_path / "a", script)
    async with serving(tmp_path, fake) as gateway, connect(gateway) as socket:
        await say(socket, id="x")
        await say(socket, id="y")
        assert {(await hear(socket))["id"] for _ in range(2)} == {"x", "y"}
        await socket.send(orjson.dumps({"type": "cancel", "id": "x"}).decode())
        ended = await hear(socket)
        assert (ended["id"], ended["code"], ended["status"]) == ("x", "cancelled", 499)
        cancelled = next(call for call in fake.calls if call.meta.request_id == "x")
        await asyncio.wait_for(cancelled.cancelled.wait(), 20)
        go.set()
        assert await hear(socket) == {
            "type": "result", "id": "y", "model_name": "m", "model_version": "1-a",
            "served_by": "r0",
        }  # fmt: skip
        counters = gateway.counters()
        assert (counters["done"], counters["cancelled"]) == (1, 1)


async def test_a_closed_socket_cancels_all_of_its_streams(tmp_path):
    async def script(call):
        call.piece(b'{"text":"a"}\n', type="application/json")
        await call.cancelled.wait()
        call.piece(final=True)

    fake = FakeLLM(tmp_path / "a", script)
    async with serving(tmp_path, fake) as gateway:
        async with connect(gateway) as socket:
            for name in "xyz":
                await say(socket, id=name)
            for _ in range(3):
                await hear(socket)
        await until(lambda: all(call.cancelled.is_set() for call in fake.calls))
        assert gateway.counters()["cancelled"] == 3


async def test_the_handshakes_version_holds_unless_a_message_names_one(tmp_path):
    fake = FakeLLM(tmp_path / "a", speak)
    fake.versions = ("1-a", "2-b")
    async with (
        serving(tmp_path, fake) as gateway,
        connect(gateway, additional_headers={"x-model-version": "2-b", "x-timing": "1"}) as socket,
    ):
        for said, expected in (({}, "2-b"), ({"model_version": "1"}, "1-a")):
            await say(socket, id="x", **said)
            *_, result = [await hear(socket) for _ in range(4)]
            assert result["model_version"] == expected
            assert result["timing"].keys() == {"queue_ms", "first_ms"}


async def test_what_is_wrong_is_said_under_the_messages_id(tmp_path):
    async def script(call):
        call.fault(status=400, code="invalid_request", message="top_k: too low", param="top_k")

    fake = FakeLLM(tmp_path / "a", script)
    async with serving(tmp_path, fake) as gateway, connect(gateway) as socket:
        await say(socket, id="x")
        assert await hear(socket) == {
            "type": "error", "id": "x", "status": 400, "code": "invalid_request",
            "message": "top_k: too low", "param": "top_k",
        }  # fmt: skip
        await say(socket, id="y", model_name="nope")
        assert (await hear(socket))["code"] == "model_not_found"
        await say(socket, id="z", model_version="9")
        error = await hear(socket)
        assert (error["status"], error["param"]) == (404, "model_version")
        await socket.send(orjson.dumps({"type": "generate", "id": "w"}).decode())
        assert (await hear(socket))["param"] == "model_name"
