"""Any course of events on one connection: each exchange ends once, and nothing is written late."""

from __future__ import annotations

import gzip

from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.lane import Exchange, Limits
from tests.gateway.lane.fakes import Clock, Wire, chunked, make_lane, request

LIMITS = Limits(pipeline=3, max_body=2000, max_head=300, max_bodies=3000, linger_bytes=3000)
PIECES = st.one_of(
    st.sampled_from(
        [
            request(),
            request("HEAD", "/s"),
            request("POST", "/s", b"abc"),
            request("POST", "/b", b"abc"),
            request("POST", "/b", b"x" * 3000),
            request("POST", "/s", b"x" * 1900, "expect: 100-continue"),
            request("POST", "/b", gzip.compress(bytes(1000)), "content-encoding: gzip"),
            request("GET", "/s", None, "connection: upgrade", "upgrade: y"),
            request("GET", "/b", None, "connection: close"),
            b"GET /s HTTP/1.0\r\n\r\n",
            b"POST /b HTTP/1.0\r\nconnection: keep-alive\r\ncontent-length: 1\r\n\r\nx",
            chunked(b"abc", b"defg", target="/s"),
            chunked(b"abc", target="/b"),
            b"\r\n",
            b"x" * 100,
            b"0\r\n\r\n",
        ]
    ),
    st.binary(max_size=5),
)
DEEDS = ["respond", "start", "sized", "write", "much", "end", "abort", "pause", "resume", "101"]
EVENTS = st.one_of(
    st.tuples(st.just("send"), PIECES, st.integers(0, 60)),
    st.tuples(st.sampled_from(DEEDS), st.integers(0, 3), st.just(0)),
    st.tuples(st.sampled_from(["eof", "gone", "stuck", "reads", "drain"]), st.just(0), st.just(0)),
    st.tuples(st.just("sweep"), st.sampled_from([1, 20, 100]), st.just(0)),
)


class Watched:
    """A handler that counts how each of its exchanges ends."""

    def __init__(self, *, streams: bool) -> None:
        self.streams = streams
        self.open: list[Exchange] = []
        self.ended: list[tuple[str, Exchange]] = []
        self.body_ends: list[Exchange] = []
        self.tunnel_ends: list[Exchange] = []

    def __call__(self, exchange: Exchange) -> None:
        self.open.append(exchange)
        exchange.on_gone = lambda: self.close(exchange, "gone")
        exchange.on_body_end = lambda: self.body_ends.append(exchange)

    def close(self, exchange: Exchange, how: str) -> None:
        self.open.remove(exchange)  # fails if it has ended before
        self.ended.append((how, exchange))

    def do(self, deed: str, at: int) -> None:
        if at >= len(self.open):
            return
        exchange = self.open[at]
        if deed in ("pause", "resume"):
            getattr(exchange, deed + "_body")()
        elif deed == "respond" and exchange.phase == 0:
            self.close(exchange, "answered")
            exchange.respond(200, b"whole")
        elif deed == "101" and exchange.head.framing.upgrade and exchange.phase == 0:
            # The request has ended; what ends now is the tunnel.
            exchange.on_body_end = lambda: self.tunnel_ends.append(exchange)
            exchange.start(101)
        elif deed in ("start", "sized") and exchange.phase == 0:
            exchange.start(200, length=5 if deed == "sized" else None)
        elif deed in ("write", "much") and exchange.phase == 1 and exchange._left is None:
            exchange.write(b"y" * (100_000 if deed == "much" else 5))
        elif deed == "end" and exchange.phase == 1:
            self.close(exchange, "answered")
            exchange.end()
        elif deed == "abort":
            self.close(exchange, "aborted")
            exchange.abort()


UPGRADE = request("GET", "/s", None, "connection: upgrade", "upgrade: y")


@settings(max_examples=200)
@example([("send", UPGRADE, 0), ("101", 1, 0), ("eof", 0, 0)], False)
@given(st.lists(EVENTS, max_size=30), st.booleans())
async def test_any_course_of_events(events, warm):
    gathers, streams, clock = Watched(streams=False), Watched(streams=True), Clock()
    lane = make_lane(gathers, LIMITS, clock=clock, warm=warm, s=streams)
    wire = Wire(lane)
    transport = wire.transport
    for what, first, second in events:
        if what == "send":
            if transport.reading:  # in two pieces, however it is cut
                wire.send(first[:second])
            if transport.reading:
                wire.send(first[second:])
        elif what == "sweep":
            clock.now += first
            lane.sweep(clock.now)
        elif what == "eof" and transport.reading:
            wire.eof()
        elif what == "gone":
            transport.abort()
        elif what == "stuck":
            transport.client_reads = False
        elif what == "reads":
            transport.client_reads = True
            transport.client_read_all()
        elif what == "drain":
            wire.connection.drain()
            wire.connection.close_if_idle()
        else:
            (streams if first % 2 else gathers).do(what, first // 2)
        in_flight = len(gathers.open) + len(streams.open)
        assert in_flight <= LIMITS.pipeline
        assert 0 <= lane.gathered <= LIMITS.max_bodies + 2000
        if transport.closed:
            assert in_flight == 0 and lane.gathered == 0 and lane.stats.open == 0
        elif not transport.eof_written:
            assert transport.reading or in_flight or transport.waiting
    transport.close()
    assert not gathers.open and not streams.open and lane.gathered == 0
    for ends in (streams.body_ends, streams.tunnel_ends):
        assert len(set(ends)) == len(ends)
    seen = [e for handler in (gathers, streams) for _, e in handler.ended]
    assert len(set(seen)) == len(seen) == lane.stats.requests
    # The lane has taken no harm.
    assert Wire(lane).send(request("GET", "/s")).raw == b""
    streams.do("respond", 0)
