"""Answers: framing, order, flow control, and what a handler may do wrong."""

from __future__ import annotations

import logging

import pytest

from gateway.lane import Limits, field
from gateway.lane.response import Prefixes
from tests.gateway.lane.fakes import (
    Echo,
    Later,
    Wire,
    chunked,
    make_lane,
    request,
)

OLD = b"GET /x HTTP/1.0\r\n\r\n"
OLD_KEPT = b"GET /x HTTP/1.0\r\nconnection: Keep-Alive\r\n\r\n"
CLOSING = request("GET", "/x", None, "connection: close")


def asked(raw: bytes, limits: Limits | None = None, *, streams: bool = False):
    """A wire whose one request waits for its answer."""
    later = Later(streams=streams)
    wire = Wire(make_lane(later, limits)).send(raw)
    return wire, later.seen[0]


# ------------------------------------------------------------------------------------ whole answers


@pytest.mark.parametrize(
    "body", [b"", b"abc", bytearray(b"abc"), memoryview(b"abc"), [b"a", memoryview(b"bc")], [], ()]
)
@pytest.mark.parametrize("raw", [request(), OLD, OLD_KEPT, CLOSING, request() * 2])
async def test_an_answer_of_any_kind_of_body(raw, body):
    wire, exchange = asked(raw)
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


# --------------------------------------------------------------------------------- streamed answers


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


# ---------------------------------------------------------------------------------- flow control


async def test_a_slow_reader_stops_the_writer_and_the_reading():
    wire, exchange = asked(request())
    called = []
    exchange.on_writable = lambda: called.append(1)
    wire.transport.client_reads = False
    exchange.start(200)
    assert exchange.write(b"x" * 1000)
    assert not exchange.write(b"x" * 100_000)
    assert not wire.transport.reading and not called
    wire.transport.client_read_all()
    assert wire.transport.reading and called == [1]
    exchange.end()


async def test_a_client_that_reads_nothing_has_no_more_requests_begun():
    later = Later()
    wire = Wire(make_lane(later)).send(request())
    wire.transport.client_reads = False
    later.seen[0].respond(200, b"x" * 100_000)
    assert not wire.transport.reading
    # What was on its way already when reading stopped waits.
    wire.send(request("GET", "/second"))
    assert len(later.seen) == 1
    wire.transport.client_read_all()
    assert wire.transport.reading and len(later.seen) == 2


async def test_no_more_requests_are_in_flight_than_allowed():
    later = Later()
    wire = Wire(make_lane(later, Limits(pipeline=3))).send(request() * 10)
    assert len(later.seen) == 3 and not wire.transport.reading
    later.seen[1].respond(200, b"second")
    assert len(later.seen) == 3  # its answer is still kept
    later.seen[0].respond(200, b"first")
    assert len(later.seen) == 5 and not wire.transport.reading
    for _ in range(8):
        next(e for e in later.seen if e.phase == 0).respond(200, b"{}")
    assert len(wire.answers()) == len(later.seen) == 10
    assert wire.transport.reading


async def test_a_handler_paces_a_streamed_body():
    wire, exchange = asked(request("POST", "/x", b"0123456789")[:-6], streams=True)
    got = []
    exchange.on_body, exchange.on_body_end = got.append, lambda: got.append(b"end")
    exchange.pause_body()
    assert not wire.transport.reading
    wire.send(b"456")  # was on its way
    assert got == []
    exchange.resume_body()
    assert wire.transport.reading and got == [b"456"]
    wire.send(b"789" + request())
    assert got == [b"456", b"789", b"end"]


# --------------------------------------------------------------------------- answers before bodies


async def test_continue_is_said_when_the_body_is_wanted():
    raw = request("POST", "/x", b"abc", "expect: 100-continue")
    wire = Wire(make_lane(Echo())).send(raw[:-3])
    assert wire.raw == b"HTTP/1.1 100 Continue\r\n\r\n"
    wire.send(b"abc", raw[:-3])
    assert wire.raw.count(b"100 Continue") == 2
    wire.send(b"abc")
    assert [a.status for a in wire.answers()] == [100, 200, 100, 200]


async def test_continue_is_not_said_when_the_body_is_here_or_absent():
    raw = request("POST", "/x", b"abc", "expect: 100-Continue")
    for one in (raw, raw[:-1], request("GET", "/x", None, "expect: 100-continue")):
        assert b"100 Continue" not in Wire(make_lane(Echo())).send(one).raw
    old = b"POST /x HTTP/1.0\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n"
    assert Wire(make_lane(Echo())).send(old).raw == b""


async def test_continue_waits_for_its_turn_and_for_the_handler():
    later = Later()
    slow = Later(streams=True)
    lane = make_lane(later, y=slow)
    wire = Wire(lane)
    raw = request("POST", "/x", b"abc", "expect: 100-continue")[:-3]
    wire.send(request() + raw)
    assert wire.raw == b""
    later.seen[0].respond(200, b"{}")
    assert [a.status for a in wire.answers()] == [200, 100]

    class Hesitates(Later):
        def __call__(self, exchange):
            super().__call__(exchange)
            exchange.pause_body()

    handler = Hesitates(streams=True)
    wire = Wire(make_lane(handler)).send(raw)
    assert wire.raw == b""
    handler.seen[0].resume_body()
    assert wire.raw == b"HTTP/1.1 100 Continue\r\n\r\n"


async def test_continue_is_not_said_once_the_answer_is_known():
    class Denies:
        streams = True

        def __call__(self, exchange):
            exchange.respond(401, b"{}")

    raw = request("POST", "/x", b"abc", "expect: 100-continue")
    wire = Wire(make_lane(Denies())).send(raw[:-3])
    (answer,) = wire.answers()
    # The client may send the body nevertheless or not: nobody can tell what comes next.
    assert (answer.status, answer.headers[b"connection"]) == (401, b"close")
    assert wire.transport.eof_written


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        (request("POST", "/x", b"x" * 1000), True),
        (request("POST", "/x", b"x" * 100_000), False),
        (chunked(b"abc"), False),
    ],
)
async def test_an_answer_before_a_long_body_closes_and_before_a_short_one_does_not(raw, kept):
    for whole in (True, False):
        head = raw.index(b"\r\n\r\n") + 4
        wire, exchange = asked(raw[:head], streams=True)
        if whole:
            exchange.respond(401, b"{}")
        else:
            exchange.start(401)
            exchange.end()
        wire.send(raw[head:], request())
        assert wire.transport.eof_written != kept
        assert (b"close" in wire.raw) == (whole and not kept)
        assert len(wire.lane.resolve("", "").seen) == (2 if kept else 1)


# ------------------------------------------------------------------------------------- tunnels


UPGRADE = request("GET", "/x", None, "connection: upgrade", "upgrade: echo")


async def test_101_makes_a_tunnel():
    wire, exchange = asked(UPGRADE, streams=True)
    got = []
    exchange.start(101, fields=field(b"upgrade", "echo"))
    exchange.on_body, exchange.on_body_end = got.append, lambda: got.append(None)
    assert wire.raw == b"HTTP/1.1 101 Switching Protocols\r\nupgrade: echo\r\n\r\n"
    wire.send(b"GET / HTTP", b"\0\r\n\r\n")
    exchange.write(b"raw")
    assert got == [b"GET / HTTP", b"\0\r\n\r\n"] and wire.raw.endswith(b"\r\n\r\nraw")
    wire.eof()
    assert got[-1] is None and not wire.transport.closed
    exchange.end()
    assert wire.transport.closed


async def test_bytes_behind_an_upgrade_wait_for_the_tunnel():
    later = Later(streams=True)
    wire = Wire(make_lane(later)).send(UPGRADE + b"early")
    exchange = later.seen[0]
    assert not wire.transport.reading
    got = []
    exchange.on_body = lambda piece: got.append((piece, wire.raw[:12]))
    exchange.start(101)
    wire.send(b"late")
    assert got == [(b"early", b"HTTP/1.1 101"), (b"late", b"HTTP/1.1 101")]


async def test_an_upgrade_that_is_not_made_leaves_an_ordinary_connection():
    later = Later(streams=True)
    wire = Wire(make_lane(later)).send(UPGRADE + request())
    assert len(later.seen) == 1
    later.seen[0].respond(426, b"{}")
    later.seen[1].respond(200, b"{}")
    assert wire.statuses() == [426, 200] and wire.transport.reading


async def test_101_is_refused_where_nobody_asked_for_it():
    _, exchange = asked(request(), streams=True)
    with pytest.raises(RuntimeError, match="upgrade"):
        exchange.start(101)


# ---------------------------------------------------------------------------- handlers gone wrong


class Raises:
    def __init__(self, where: str) -> None:
        self.where, self.streams = where, where not in ("call", "started")

    def boom(self, *_: object) -> None:
        raise ValueError("boom")

    def __call__(self, exchange) -> None:
        if self.where == "started":
            exchange.start(200)
        if self.where in ("call", "started"):
            self.boom()
        if self.where == "body":
            exchange.on_body = self.boom
        if self.where == "end":
            exchange.on_body_end = self.boom


@pytest.mark.parametrize("where", ["call", "body", "end"])
async def test_a_handler_that_raises_costs_its_own_request_only(where, caplog):
    lane = make_lane(Raises(where), good=Echo())
    for raw in (request("POST", "/x", b"abc"), chunked(b"abc")):
        wire = Wire(lane).send(raw, request("GET", "/good"))
        assert wire.statuses()[0] == 500
        assert "boom" in caplog.text
    assert Wire(lane).send(request("GET", "/good")).statuses() == [200]


async def test_a_handler_that_raises_in_its_answer_breaks_off(caplog):
    wire = Wire(make_lane(Raises("started"))).send(request(), request())
    assert wire.transport.closed and not wire.answers()[0].whole
    assert "boom" in caplog.text


async def test_a_callback_that_raises_hinders_no_other(caplog):
    later = Later()
    wire = Wire(make_lane(later)).send(request() * 3)
    later.seen[0].on_gone = Raises("gone").boom
    wire.transport.abort()
    assert later.gone == later.seen[1:]
    assert "boom" in caplog.text


async def test_misuse_is_told():
    _, exchange = asked(request() * 2)
    with pytest.raises(RuntimeError, match="between start"):
        exchange.write(b"x")
    with pytest.raises(RuntimeError, match="after start"):
        exchange.end()
    exchange.start(200, length=3)
    with pytest.raises(RuntimeError, match="answered already"):
        exchange.start(200)
    with pytest.raises(RuntimeError, match="answered already"):
        exchange.respond(200)
    with pytest.raises(RuntimeError, match="longer"):
        exchange.write(b"1234")


async def test_after_the_client_has_gone_nothing_happens(caplog):
    caplog.set_level(logging.DEBUG)
    for streams in (False, True):
        wire, exchange = asked(request("POST", "/x", b"abc"), streams=streams)
        wire.transport.abort()
        exchange.start(200)
        assert exchange.write(b"x") is False
        exchange.end()
        exchange.respond(200, b"x")
        exchange.inform(103)
        exchange.pause_body()
        exchange.resume_body()
        exchange.abort()
        assert (exchange.peer, exchange.tls) == ("", False)
        assert wire.raw == b"" and not caplog.records


async def test_on_gone_comes_once_and_only_before_the_answers_end():
    later = Later()
    wire = Wire(make_lane(later)).send(request() * 3)
    later.seen[0].respond(200, b"{}")
    later.seen[1].start(200)
    wire.transport.abort()
    assert later.gone == later.seen[1:]
    assert wire.lane.stats.gone == 2 and wire.lane.stats.open == 0


async def test_a_streamed_body_that_breaks_a_rule_ends_the_exchange():
    for started in (False, True):
        later = Later(streams=True)
        wire = Wire(make_lane(later))
        raw = chunked(b"abc")
        wire.send(raw[: raw.index(b"abc")])
        if started:
            later.seen[0].start(200)
        wire.send(b"abcdef\r\n")
        assert later.gone == later.seen
        later.seen[0].respond(200, b"too late")
        if started:
            assert not wire.answers()[0].whole and wire.transport.closed
        else:
            assert wire.statuses() == [400]


# ------------------------------------------------------------------------------------ header lines


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
