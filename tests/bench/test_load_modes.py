"""Answers that are streams or messages: counted and timed however they are cut."""

from __future__ import annotations

import asyncio
import json

import pytest
import websockets
from hypothesis import given
from hypothesis import strategies as st

from bench.load.drive import CannotConnect, Drive
from bench.load.events import EventConnection
from bench.load.presets import PRESETS, as_message, chat, with_preset
from bench.load.spec import LoadReport, LoadSpec
from bench.load.websocket import frame
from bench.relaying import launch_upstream, listens
from bench.upstreams.scripted import CHUNKS, MODEL

BODY = b'data: {"n":1}\n\ndata: {"n":2}\n\n: beat\n\ndata: [DONE]\n\n'
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"


class Told:
    def __init__(self) -> None:
        self.count, self.firsts, self.tokens, self.ends = 0, 0, 0, []

    def events(self, connection, count, waited, first):
        self.count += count
        self.firsts += first
        assert waited >= 0

    def counted_tokens(self, connection, count):
        self.tokens += count

    def answered(self, connection, status):
        self.ends.append(status)

    def broken(self, connection, why):
        self.ends.append(why)


class Transport(asyncio.Transport):
    def write(self, data):
        pass

    def abort(self):
        pass

    close = abort


def told(stream, cuts=(1000,), *, openai=True):
    owner = Told()
    connection = EventConnection(owner, openai=openai)
    connection.connection_made(Transport())
    connection.send(b"", 0.0)
    at, turn = 0, 0
    while at < len(stream):
        connection.data_received(stream[at : at + cuts[turn % len(cuts)]])
        at, turn = at + cuts[turn % len(cuts)], turn + 1
    return owner


def sized(body):
    return HEAD + b"content-length: %d\r\n\r\n%b" % (len(body), body)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_events_are_counted_however_they_are_cut(cuts):
    owner = told(sized(BODY), cuts)
    assert (owner.count, owner.firsts, owner.ends) == (4, 1, [200])
    crlf = told(sized(BODY.replace(b"\n", b"\r\n")), cuts)
    assert (crlf.count, crlf.firsts, crlf.ends) == (4, 1, [200])


def test_tokens_are_those_that_the_server_tells():
    usage = b'data: {"usage": {"completion_tokens": 17}}\n\n'
    assert told(sized(BODY[:-14] + usage + BODY[-14:])).tokens == 17
    assert told(sized(b'{"usage":{"completion_tokens":5}}')).tokens == 5


def test_a_stream_may_end_with_its_connection_but_a_cut_one_is_broken():
    def ended(head):
        owner = Told()
        connection = EventConnection(owner, openai=False)
        connection.connection_made(Transport())
        connection.send(b"", 0.0)
        for piece in (head[:20], head[20:], BODY):
            connection.data_received(piece)
        connection.connection_lost(None)
        return owner.ends

    assert ended(HEAD + b"connection: close\r\n\r\n") == [200]
    assert ended(HEAD + b"connection: close\r\ncontent-length: 900\r\n\r\n") == ["closed"]
    assert ended(b"HTTP/1.0 200 OK\r\n\r\n") == [200]


@pytest.mark.parametrize(
    ("body", "openai", "end"),
    [
        (BODY[:-14], True, "a stream without [DONE]"),
        (BODY[:-14], False, 200),
        (b'data: {"error": {"code": "x"}}\n\n' + BODY, True, "an error event"),
        (b"event: error\ndata: {}\n\n", False, "an error event"),
        (b"{}", False, "an answer without events"),
        (b'{"object": "chat.completion"}', True, 200),
    ],
)
def test_a_stream_that_is_not_whole_is_broken(body, openai, end):
    assert told(sized(body), openai=openai).ends == [end]


def test_a_status_tells_more_than_a_missing_end():
    answer = b"HTTP/1.1 429 X\r\ncontent-length: 9\r\n\r\ndata: a\n\n"
    assert told(answer).ends == [429]


async def load(**how) -> LoadReport:
    spec = LoadSpec(**{"connections": 3, "seconds": 0.3, "timeout_s": 2.0, **how})
    return await Drive(spec).run()


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    with launch_upstream(tmp_path_factory.mktemp("upstream"), "0", step_ms=0.2) as server:
        yield f"http://127.0.0.1:{listens(server)}/v1/chat/completions"


async def test_a_stream_of_openai_is_timed_by_its_events(upstream):
    body = chat(MODEL, "hello", CHUNKS, stream=True)
    report = await load(url=upstream, mode="openai", body=body)
    assert report.ok > 3 and not report.failed
    assert report.first.count >= report.ok
    assert report.events >= report.ok * (CHUNKS + 1)
    assert 0 < report.first.percentile(50) < report.latency.percentile(50)
    assert report.gaps.count > report.ok


def test_reports_with_streams_add_up():
    first, other = LoadReport(events=2), LoadReport(events=3)
    first.first.record(5)
    other.first.record(7)
    first.add(LoadReport.from_json(json.loads(json.dumps(other.to_json()))))
    assert (first.events, first.first.count, first.first.total) == (5, 2, 12)


# ---------------------------------------------------------------------------------- WebSocket


async def serve(socket):
    """Answers as the message's `do` says."""
    async for message in socket:
        asked = json.loads(message)
        if asked["do"] == "close":
            await socket.close(1008)
        elif asked["do"] == "refuse":
            await socket.send(json.dumps({"type": "error", "id": "1", "status": 429}))
        elif asked["do"] == "stream":
            await socket.ping()
            for text in "ab":
                await socket.send(json.dumps({"type": "delta", "id": "1", "text": text}))
            await socket.send(json.dumps({"type": "result", "id": "1"}))
        else:
            await socket.send("x" * asked["size"])


async def socket_load(message, **how):
    async with websockets.serve(serve, "127.0.0.1", 0, max_size=None) as server:
        port = server.sockets[0].getsockname()[1]
        body = json.dumps(message).encode()
        return await load(url=f"ws://127.0.0.1:{port}/ws", mode="ws", body=body, **how)


@pytest.mark.parametrize("size", [1, 130, 70_000])
async def test_a_message_is_answered_by_one(size):
    report = await socket_load({"do": "echo", "size": size}, rate=100)
    assert report.ok == report.sent > 10 and not report.failed
    assert report.received > report.ok * size


async def test_deltas_are_events_and_the_result_is_the_end():
    report = await socket_load({"do": "stream"})
    assert report.ok > 3 and not report.failed
    assert report.events >= 2 * report.ok
    assert report.first.count >= report.ok


async def test_an_error_message_has_its_status():
    report = await socket_load({"do": "refuse"}, rate=100)
    assert report.ok == 0
    assert report.statuses == {"429": report.sent}


async def test_a_closed_socket_is_told_and_replaced():
    report = await socket_load({"do": "close"}, rate=50)
    assert report.errors == {"close 1008": report.sent}
    assert report.reconnects > 3


async def test_a_server_that_shakes_no_hands_is_told(base):
    url = base.replace("http", "ws") + "/status/403"
    with pytest.raises(CannotConnect, match="403"):
        await load(url=url, mode="ws", body=b"{}")


@given(st.binary(max_size=200))
def test_frames_are_masked_as_a_clients_must_be(payload):
    made = frame(payload)
    assert made[1] & 0x80 and made.endswith(payload)


def test_a_preset_becomes_a_message():
    spec = with_preset(LoadSpec(url="http://h:1"), PRESETS["digits"])
    message = as_message(spec, {"authorization": "Bearer k"})
    assert message.headers == {"authorization": "Bearer k"}
    assert message.url == "ws://h:1/ws"
    found = json.loads(message.body)
    assert found["model_name"] == "digits" and found["inputs"][0]["name"] == "image"
