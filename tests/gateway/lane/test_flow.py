"""Who waits for whom: slow readers, bounded pipelines, paced bodies, early answers, tunnels."""

from __future__ import annotations

import pytest

from gateway.lane import Limits, field
from tests.gateway.lane.fakes import Echo, Later, Wire, asked, chunked, make_lane, request


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


async def test_whoever_has_its_turn_while_the_client_is_slow_waits_to_write():
    later = Later()
    wire = Wire(make_lane(later)).send(request() * 2)
    called = []
    later.seen[1].on_writable = lambda: called.append(1)
    later.seen[1].start(200)
    wire.transport.client_reads = False
    later.seen[0].respond(200, b"x" * 100_000)
    assert not called and not later.seen[1].write(b"x")
    wire.transport.client_read_all()
    assert called


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


async def test_a_paused_body_does_not_stop_the_connection_once_it_is_answered():
    wire, exchange = asked(request("POST", "/x", b"0123456789")[:-6], streams=True)
    exchange.pause_body()
    exchange.respond(401, b"{}")
    assert wire.transport.reading
    wire.send(b"456789", request())
    assert len(wire.lane.resolve("", "").seen) == 2


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


UPGRADE = request("GET", "/x", None, "connection: upgrade", "upgrade: echo")


async def test_the_rest_of_a_body_is_no_request():
    inner = request("GET", "/smuggled")
    wire, exchange = asked(request("POST", "/x", inner)[: -len(inner)], streams=True)
    exchange.respond(401, b"{}")
    wire.send(inner, request("GET", "/x"))
    assert [e.path for e in wire.lane.resolve("", "").seen] == ["/x", "/x"]


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
