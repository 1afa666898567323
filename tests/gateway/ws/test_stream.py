"""Streamed answers: what a generative model plugs in."""

from __future__ import annotations

import asyncio

import pytest

from gateway.errors import BadRequest, ModelFailed
from gateway.ws import SocketLimits, Stream
from tests.gateway.oip.fakes import FakeModel
from tests.gateway.ws.fakes import Talk, handshake, text


class Words:
    """An opener that keeps its streams; the test speaks for it."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.gone: list[str] = []
        self.writable = 0

    def __call__(self, document, stream) -> None:
        if "prompt" not in document:
            raise BadRequest("prompt is missing", param="prompt")
        stream.on_gone = lambda: self.gone.append(stream.id)
        stream.on_writable = self.note_writable
        self.streams.append(stream)

    def note_writable(self) -> None:
        self.writable += 1


def talking(**more) -> tuple[Talk, Words]:
    words = Words()
    return Talk(FakeModel(), streams={"generate": words}, **more), words


def generate(name: str, **more) -> bytes:
    return text({"type": "generate", "id": name, "prompt": "Once", **more})


async def test_a_stream_is_deltas_and_one_result():
    talk, words = talking()
    talk.send(generate("a"), generate("b"))
    first, second = words.streams
    assert first.delta({"text": "upon"}) and second.delta({"text": "more"})
    first.delta({"text": " a time"})
    first.end({"finish_reason": "stop"})
    assert await talk.said() == [
        {"type": "delta", "id": "a", "text": "upon"},
        {"type": "delta", "id": "b", "text": "more"},
        {"type": "delta", "id": "a", "text": " a time"},
        {"type": "result", "id": "a", "finish_reason": "stop"},
    ]
    # After its end nothing more comes of it.
    assert not first.delta({"text": "!"})
    first.end({})
    first.fail(ModelFailed("late"))
    second.fail(ModelFailed("out of words"))
    (error,) = await talk.said()
    assert (error["id"], error["code"]) == ("b", "model_error")
    assert words.gone == [] and talk.surface.held == 0


async def test_a_stream_knows_what_was_asked_beside_its_content():
    talk, words = talking(head=handshake("x-session-id: s"))
    talk.send(generate("a", deadline_ms=500, priority=4))
    (stream,) = words.streams
    assert stream.asked[:3] == ("s", 0.5, 4)
    assert stream.deadline == stream.arrived + 0.5 == talk.clock.now + 0.5


async def test_cancel_stops_a_stream():
    talk, words = talking()
    talk.send(generate("a"), text({"type": "cancel", "id": "a"}))
    error = await talk.one()
    assert (error["id"], error["code"]) == ("a", "cancelled") and words.gone == ["a"]
    assert not words.streams[0].delta({"text": "x"})
    assert await talk.said() == []


async def test_a_socket_that_closes_stops_its_streams():
    talk, words = talking()
    talk.send(generate("a"), generate("b"))
    talk.transport.close()
    assert words.gone == ["a", "b"]
    for stream in words.streams:
        stream.end({})
    assert talk.surface.stats.abandoned == 2 and talk.surface.held == 0


async def test_a_slow_client_is_waited_for():
    talk, words = talking()
    talk.send(generate("a"))
    (stream,) = words.streams
    talk.transport.client_reads = False
    sent = 0
    while stream.delta({"text": "x" * 1000}):
        sent += 1
        await asyncio.sleep(0)
        assert sent < 1000
    talk.transport.client_reads = True
    talk.transport.client_read_all()
    assert words.writable == 1
    assert stream.delta({"text": "y"})
    assert (await talk.said())[-1]["text"] == "y"


async def test_one_that_never_waits_loses_the_socket():
    talk, words = talking(limits=SocketLimits(max_unsent=50_000))
    talk.send(generate("a"))
    talk.transport.client_reads = False
    for _ in range(1000):
        words.streams[0].delta({"text": "x" * 1000})
        await asyncio.sleep(0)
    assert words.gone == ["a"] and dict(talk.surface.stats.closed) == {1008: 1}


@pytest.mark.parametrize(
    ("frame", "status", "named"),
    [
        (text({"type": "generate", "id": "a"}), 400, "prompt"),
        (generate("a", priority="x"), 400, "priority"),
        (text({"type": "sing", "id": "a"}), 400, "infer, generate, cancel, ping"),
    ],
    ids=range(3),  # masks are random, and a test needs a name
)
async def test_what_the_opener_refuses_is_the_requests_end(frame, status, named):
    talk, words = talking()
    error = await talk.send(frame).one()
    assert error["status"] == status and named in error["message"]
    assert talk.surface.held == 0 and words.gone == []


async def test_an_opener_that_fails_costs_its_own_request():
    def broken(document, stream):
        stream.delta({"text": "x"})
        raise RuntimeError("a bug")

    def rude(document, stream):
        def fail() -> None:
            raise RuntimeError("a bug")

        stream.on_gone = stream.on_writable = fail

    talk = Talk(streams={"generate": broken, "rude": rude})
    talk.send(generate("a"), generate("r", type="rude"))
    delta, error = await talk.said()
    assert delta["type"] == "delta" and (error["id"], error["status"]) == ("a", 500)
    talk.send(text({"type": "cancel", "id": "r"}))
    assert (await talk.one())["code"] == "cancelled"
    talk.send(generate("r", type="rude"))
    talk.transport.protocol.pause_writing()
    talk.surface.close()
    assert talk.transport.aborted and talk.surface.held == 0
