"""A transport, a clock and handlers that tests hold in their hands, and a reader of answers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import httptools

from gateway.lane import Exchange, Lane, Limits


class FakeTransport(asyncio.Transport):
    """Keeps what is written. `client_reads` False: nothing leaves, as with a full socket."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.protocol = protocol
        self.written = bytearray()
        self.waiting = 0  # bytes that have not left
        self.client_reads = True
        self.reading = True
        self.closed = self.aborted = self.eof_written = False
        self.high_water = 64 * 1024

    def write(self, data: bytes) -> None:
        assert not self.eof_written, "write() after write_eof()"
        assert not self.closed, "write() after close()"
        self.written += data
        if not self.client_reads:
            before, self.waiting = self.waiting, self.waiting + len(data)
            if before <= self.high_water < self.waiting:
                self.protocol.pause_writing()

    def client_read_all(self) -> None:
        paused, self.waiting = self.waiting > self.high_water, 0
        if paused:
            self.protocol.resume_writing()

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def write_eof(self) -> None:
        self.eof_written = True

    def can_write_eof(self) -> bool:
        return True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.protocol.connection_lost(None)

    def abort(self) -> None:
        self.aborted = True
        self.close()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self.protocol = protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("192.0.2.7", 4711) if name == "peername" else default


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Echo:
    """Answers at once with the request's method, target and body."""

    streams = False

    def __call__(self, exchange: Exchange) -> None:
        exchange.respond(200, described(exchange, bytes(exchange.body)), b"text/plain")


class Later:
    """Keeps exchanges until the test answers them."""

    def __init__(self, *, streams: bool = False) -> None:
        self.streams = streams
        self.seen: list[Exchange] = []
        self.gone: list[Exchange] = []

    def __call__(self, exchange: Exchange) -> None:
        self.seen.append(exchange)
        exchange.on_gone = lambda: self.gone.append(exchange)


class StreamEcho:
    """Gathers a streamed body and sends it back in the same pieces."""

    streams = True

    def __call__(self, exchange: Exchange) -> None:
        pieces: list[bytes] = []

        def finish() -> None:
            exchange.start(200, b"text/plain")
            exchange.write(described(exchange, b""))
            for piece in pieces:
                exchange.write(piece)
            exchange.end()

        exchange.on_body, exchange.on_body_end = pieces.append, finish


def described(exchange: Exchange, body: bytes) -> bytes:
    target = exchange.path + ("?" + exchange.query if exchange.query else "")
    return f"{exchange.method} {target} ".encode() + body


class Wire:
    """One connection of a lane on a fake transport."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.connection = lane.protocol()
        self.transport = FakeTransport(self.connection)
        self.connection.connection_made(self.transport)

    def send(self, *pieces: bytes) -> Wire:
        for piece in pieces:
            if piece and not self.transport.closed:
                self.transport.protocol.data_received(piece)
        return self

    def eof(self) -> Wire:
        if not self.transport.closed and not self.transport.protocol.eof_received():
            self.transport.close()
        return self

    @property
    def raw(self) -> bytes:
        """What has been written, with a date that two tests of one second apart share."""
        return re.sub(rb"(?<=\r\ndate: )[^\r]{29}", b"now", bytes(self.transport.written))

    def answers(self, *methods: str) -> list[Answer]:
        return read_answers(bytes(self.transport.written), *methods)

    def statuses(self) -> list[int]:
        return [answer.status for answer in self.answers()]


class Answer:
    """One parsed response; `whole` False: its end has not come."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.whole = False


class _Reader:
    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.parser = httptools.HttpResponseParser(self)

    def on_message_begin(self) -> None:
        self.answers.append(Answer())

    def on_header(self, name: bytes, value: bytes) -> None:
        assert name.lower() not in self.answers[-1].headers, "a field came twice"
        self.answers[-1].headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self.answers[-1].status = self.parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self.answers[-1].body += body

    def on_message_complete(self) -> None:
        self.answers[-1].whole = True


def read_answers(raw: bytes, *methods: str) -> list[Answer]:
    """`methods`: of the requests; needed where one is HEAD, whose answer has no body."""
    answers: list[Answer] = []
    for method in methods:
        if method == "HEAD":
            head, _, raw = raw.partition(b"\r\n\r\n")
            one = read_answers(head + b"\r\n\r\n")
            one[0].whole = True
            answers += one
        else:
            assert method == "GET", "give the methods up to the last HEAD"
            reader = _Reader()
            for at in range(len(raw)):
                reader.parser.feed_data(raw[at : at + 1])
                if reader.answers and reader.answers[-1].whole:
                    break
            answers += reader.answers
            raw = raw[at + 1 :]
    if raw:
        reader = _Reader()
        reader.parser.feed_data(raw)
        answers += reader.answers
    return answers


def make_lane(
    handler: Any = None,
    limits: Limits | None = None,
    *,
    clock: Callable[[], float] | None = None,
    hand_over: Any = None,
    warm: bool = True,
    **paths: Any,
) -> Lane:
    """`handler` answers every path, or those of `paths` theirs and all others go elsewhere."""

    def resolve(method: str, path: str) -> Any:
        return paths.get(path.strip("/"), handler)

    lane = Lane(resolve, hand_over, limits, clock=clock or Clock())
    if warm:
        lane.prefixes.tick()
        # As after the first answers: the quick path is open to these.
        for status in (200, 201, 401):
            for content_type in (b"application/json", b"text/plain", b"text/x"):
                lane.prefixes.get(status, content_type)
    return lane


def request(
    method: str = "GET", target: str = "/x", body: bytes | None = None, *fields: str
) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "host: test", *fields]
    if body is not None:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


def chunked(*chunks: bytes, target: str = "/x", trailer: bytes = b"") -> bytes:
    head = f"POST {target} HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return head + body + b"0\r\n" + trailer + b"\r\n"


def asked(
    raw: bytes, limits: Limits | None = None, *, streams: bool = False, warm: bool = True
) -> tuple[Wire, Exchange]:
    """A wire whose one request waits for its answer."""
    later = Later(streams=streams)
    wire = Wire(make_lane(later, limits, warm=warm)).send(raw)
    return wire, later.seen[0]
