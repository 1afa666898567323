"""Answers: their framing, their order, and whether the connection stays."""

from __future__ import annotations

import pytest

from gateway.lane import Limits, field
from gateway.lane.response import Prefixes
from tests.gateway.lane.fakes import Echo, Later, Wire, asked, make_lane, request

OLD = b"GET /x HTTP/1.0\r\n\r\n"
OLD_KEPT = b"GET /x HTTP/1.0\r\nconnection: Keep-Alive\r\n\r\n"
CLOSING = request("GET", "/x", None, "connection: close")


@pytest.mark.parametrize(
    "body", [b"", b"abc", bytearray(b"abc"), memoryview(b"abc"), [b"a", memoryview(b"bc")], [], ()]
)
@pytest.mark.parametrize("raw", [request(), OLD, OLD_KEPT, CLOSING, request() * 2])
@pytest.mark.parametrize("warm", [False, True])
async def test_an_answer_of_any_kind_of_body(raw, body, warm):
    wire, exchange = asked(raw, warm=warm)
    exchange.respond(201, body, b"text/x", field(b"x-a", "b"))
    answer = wire.answers()[0]
    content = bytes(body) if isinstance(body, bytes | bytearray | memoryview) else b"".join(body)
    assert (answer.status, answer.body, answer.whole) == (201, content, True)
    assert answer.headers[b"content-type"] == b"text/x"
    assert answer.headers[b"content-length"] == b"%d" % len(content)
    assert answer.headers[b"x-a"] == b"b"
    assert b"date" in answer.headers


@pytest.mark.parametrize("size", [64 * 1024, 64 * 1024 + 1, 1_000_000])
async def test_large_answers(size):
    for body in (b"x" * size, [b"x" * (size - 1), b"x"]):
        wire, exchange = asked(request())
        exchange.respond(200, body)
        assert wire.answers()[0].body == b"x" * size


async def test_a_memoryview_counts_in_bytes():
    wire, exchange = asked(request())
    exchange.respond(200, [memoryview(bytes(16)).cast("f")])
    assert wire.answers()[0].headers[b"content-length"] == b"16"


@pytest.mark.parametrize(
    ("raw", "said", "closed"),
    [
        (request(), None, False),
        (CLOSING, b"close", True),
        (OLD, b"close", True),
        (OLD_KEPT, b"keep-alive", False),
        (request("GET", "/x", None, "connection: x, Close"), b"close", True),
        (request("GET", "/x", None, "connection: x", "connection: close"), b"close", True),
    ],
)
async def test_persistence(raw, said, closed):
    wire, exchange = asked(raw)
    exchange.respond(200, b"{}")
    assert wire.answers()[0].headers.get(b"connection") == said
    assert wire.transport.closed == closed


async def test_what_follows_a_closing_request_is_not_answered():
    wire, exchange = asked(CLOSING + request())
    exchange.respond(200, b"{}")
    assert len(wire.answers()) == 1
    # ... and as it lies unread, the client gets time to read its answer.
    assert wire.transport.eof_written and not wire.transport.closed


async def test_head_has_the_fields_and_no_body():
    head = request("HEAD", "/x")
    wire = Wire(make_lane(Echo())).send(head, head, request())
    first, second, third = wire.answers("HEAD", "HEAD", "GET")
    assert first.headers[b"content-length"] == second.headers[b"content-length"] == b"8"
    assert third.body == b"GET /x "
    wire, exchange = asked(head)
    exchange.start(200, b"text/plain")
    assert exchange.write(b"abc")
    exchange.end()
    wire.send(request())
    assert wire.answers("HEAD")[0].headers[b"transfer-encoding"] == b"chunked"
    assert wire.raw.endswith(b"\r\n\r\n") and b"abc" not in wire.raw


@pytest.mark.parametrize("status", [204, 304])
async def test_some_answers_have_no_body(status):
    wire, exchange = asked(request() * 2)
    exchange.respond(status, b"", b"")
    assert b"content-length" not in wire.raw and b"transfer-encoding" not in wire.raw
    wire, exchange = asked(request())
    exchange.respond(status, b"ignored", b"")
    assert b"ignored" not in wire.raw


async def test_an_unusual_status_has_a_status_line():
    wire, exchange = asked(request())
    exchange.respond(499, b"")
    assert wire.raw.startswith(b"HTTP/1.1 499 Unknown\r\n")


async def test_a_stream_goes_out_in_chunks_and_the_connection_stays():
    wire, exchange = asked(request())
    exchange.start(200, b"text/event-stream", field(b"x-a", b"b"))
    assert exchange.write(b"one") and exchange.write(b"") and exchange.write(memoryview(b"two"))
    assert wire.raw.endswith(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n")
    exchange.end()
    wire.send(request())
    (answer,) = wire.answers()
    assert (answer.body, answer.whole) == (b"onetwo", True)
    assert not wire.transport.closed


async def test_a_stream_of_known_length():
    wire, exchange = asked(request())
    exchange.start(200, b"", length=6)
    exchange.write(b"one")
    exchange.write(b"two")
    exchange.end()
    (answer,) = wire.answers()
    assert (answer.body, answer.headers[b"content-length"]) == (b"onetwo", b"6")


async def test_a_stream_to_an_old_client_ends_with_the_connection():
    wire, exchange = asked(OLD_KEPT)
    exchange.start(200)
    exchange.write(b"one")
    exchange.end()
    assert wire.raw.endswith(b"connection: close\r\n\r\none")
    assert wire.transport.closed and not wire.transport.aborted


async def test_a_stream_shorter_than_promised_breaks_off():
    wire, exchange = asked(request())
    exchange.start(200, length=6)
    exchange.write(b"one")
    exchange.end()
    assert wire.transport.closed and not wire.answers()[0].whole


@pytest.mark.parametrize("raw", [request(), OLD])
async def test_an_aborted_stream_does_not_look_whole(raw):
    wire, exchange = asked(raw)
    exchange.start(200)
    exchange.write(b"one")
    exchange.abort()
    exchange.abort()
    assert wire.transport.closed
    assert wire.transport.aborted or not wire.answers()[0].whole
    assert wire.connection.front is None


async def test_an_exchange_aborted_behind_another_waits_for_its_turn():
    later = Later()
    wire = Wire(make_lane(later)).send(request() * 3)
    later.seen[1].start(200)
    later.seen[1].write(b"one")
    later.seen[1].abort()
    assert wire.raw == b"" and not wire.transport.closed
    later.seen[0].respond(200, b"{}")
    first, second = wire.answers()
    assert first.whole and second.body == b"one" and not second.whole
    assert later.gone == [later.seen[2]]  # it will never have its turn


async def test_a_stream_behind_another_is_held_until_its_turn():
    later = Later()
    wire = Wire(make_lane(later)).send(request() * 2)
    first, second = later.seen
    called = []
    second.start(200, b"")
    second.on_writable = lambda: called.append(wire.raw.count(b"HTTP/1.1"))
    assert second.write(b"early") is False
    assert wire.raw == b""
    first.respond(200, b"{}")
    assert called == [2]
    assert second.write(b"late")
    second.end()
    assert [a.body for a in wire.answers()] == [b"{}", b"earlylate"]


async def test_streams_that_end_from_on_writable_let_the_next_ones_go():
    later = Later()
    wire = Wire(make_lane(later)).send(request() * 4)
    for exchange in later.seen[1:3]:
        exchange.start(200)
        exchange.on_writable = exchange.end
    later.seen[3].respond(200, b"last")
    later.seen[0].respond(200, b"first")
    assert [a.body for a in wire.answers()] == [b"first", b"", b"", b"last"]
    assert wire.connection.front is None


async def test_interim_answers_go_to_those_who_understand_them():
    wire, exchange = asked(request())
    exchange.inform(103, field(b"link", "</a>"))
    exchange.respond(200, b"{}")
    assert wire.raw.startswith(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\n")
    wire, exchange = asked(OLD)
    exchange.inform(103)
    assert wire.raw == b""


@pytest.mark.parametrize("value", ["a\r\nb: c", "a\nb", "a\rb", "a\0b", b"a\r\nb", "\x01", "\x7f"])
def test_a_value_cannot_break_out_of_its_line(value):
    with pytest.raises(ValueError, match="x-a"):
        field(b"x-a", value)


@pytest.mark.parametrize("name", [b"", b"a b", b"a:", b"a\r\n", "ä".encode()])
def test_a_name_is_a_token(name):
    with pytest.raises(ValueError, match="header name"):
        field(name, b"x")


def test_a_line_is_rendered():
    assert field(b"x-a", "ä\tb") == b"x-a: \xc3\xa4\tb\r\n"
    assert field(b"x-a", b"\xff") == b"x-a: \xff\r\n"


def test_rendered_heads_are_kept_for_a_second_and_bounded(monkeypatch):
    prefixes = Prefixes()
    now = [1_700_000_000.2]
    monkeypatch.setattr("gateway.lane.response.time.time", lambda: now[0])
    prefixes.tick()
    first = prefixes.get(200, b"a/b")
    now[0] += 0.5
    prefixes.tick()
    assert prefixes.get(200, b"a/b") is first
    now[0] += 0.5
    prefixes.tick()
    assert prefixes.sized == {}
    for number in range(1000):
        prefixes.get(200, b"a/%d" % number)
    assert len(prefixes.sized) <= 256


async def test_a_content_type_cannot_break_out_either():
    _, exchange = asked(request())
    with pytest.raises(ValueError, match="content-type"):
        exchange.respond(200, b"", b"a\r\nb: c")


def test_limits_are_checked():
    for wrong in ({"pipeline": 1}, {"max_body": -1}, {"head_timeout_s": -0.1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Limits(**wrong)
