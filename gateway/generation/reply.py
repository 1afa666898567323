"""The way of a call's answer to its HTTP client: events as they come, or one body.

Owns the answer's head, the comments in silence and the form of errors. What becomes of the call is
decided in `call`. Invariants: whatever was begun is ended or broken off visibly; what a slow client
leaves untaken is bounded, by itself and with all others of the worker.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from gateway.errors import GatewayError, ReplicaNonsense, SlowClient
from gateway.lane import Exchange, field
from gateway.relay.answering import PROBE_S
from gateway.relay.events import HEARTBEAT, EventGate
from gateway.relay.reply import error_event, refuse

EVENTS = b"text/event-stream"
# An answer that is no stream is gathered whole; none is as large.
MAX_WHOLE = 256 * 2**20
# What all clients of one worker may leave untaken of their streams.
MAX_BEHIND = 256 * 2**20


class Times(NamedTuple):
    """Milliseconds: until the call was sent to who answers it, and from there to its answer's
    beginning."""

    queue: float
    first: float


class Reply(Protocol):
    """Where an answer goes: `begin`, then `write` per piece, then `end`; or `fail` at any time
    before. `begun`: something of it has gone out."""

    @property
    def begun(self) -> bool: ...
    def begin(self, content_type: str, version: str, replica: str, times: Times) -> None:
        """Raises GatewayError where the client cannot be answered so."""

    def write(self, data: memoryview, *, last: bool) -> None:
        """Raises GatewayError where the answer cannot go on."""

    def end(self) -> None: ...
    def fail(self, error: GatewayError, *, final: bool, said: bytes = b"") -> None:
        """`final`: it was tried elsewhere too, or must not be. `said`: by the replica, of this
        error, in the form of its answer."""

    def look(self, now: float, quiet_since: float) -> None:
        """Now and then, while the call lives."""


class Backlog:
    """Bytes that the clients of one worker have not taken of their streams."""

    __slots__ = ("bytes", "limit")

    def __init__(self, limit: int = MAX_BEHIND) -> None:
        self.bytes, self.limit = 0, limit


class HttpReply:
    """`fields`: header lines for every answer. `most`: bytes that the client may leave untaken.
    `stream`: whether the client has asked for one; then it hears comments also while its answer has
    not begun, and what went out of it is none yet. `timing`: whether it is told the times."""

    __slots__ = (
        "_answer",
        "_backlog",
        "_beat",
        "_behind",
        "_fields",
        "_gate",
        "_heartbeat_s",
        "_most",
        "_openai",
        "_opened",
        "_pieces",
        "_size",
        "_slow",
        "_stream",
        "_timing",
        "_type",
        "begun",
        "exchange",
    )

    def __init__(
        self,
        exchange: Exchange,
        fields: bytes,
        backlog: Backlog,
        *,
        openai: bool,
        most: int,
        heartbeat_s: float,
        stream: bool = False,
        timing: bool = False,
    ) -> None:
        self.exchange, self._fields, self._openai = exchange, fields, openai
        self._answer = b""  # header lines that say who answers
        self._backlog, self._most, self._heartbeat_s = backlog, most, heartbeat_s
        self.begun = False
        self._stream, self._timing = stream, timing
        self._opened = False  # the head has gone out
        self._type = b""
        self._gate: EventGate | None = None
        self._pieces: list[bytes] = []  # of an answer that is no stream
        self._size = 0
        self._slow = False  # the client has not taken what was written
        self._behind = 0  # bytes written since
        self._beat = 0.0

    def begin(self, content_type: str, version: str, replica: str, times: Times) -> None:
        """Also again, where the one that began could not go on before anything went out."""
        self._type = content_type.encode()
        self._answer = field(b"x-model-version", version) + field(b"x-served-by", replica)
        if self._timing:
            self._answer += b"server-timing: queue;dur=%.3f, first;dur=%.3f\r\n" % times
        self._gate = EventGate() if self._type.startswith(EVENTS) else None
        if self._opened and self._gate is None:
            raise ReplicaNonsense(f"replica {replica} answers as {content_type}, not in a stream")
        self._pieces.clear()
        self._size = 0

    def write(self, data: memoryview, *, last: bool) -> None:
        gate = self._gate
        if gate is None:
            self._size += len(data)
            if self._size > MAX_WHOLE:
                raise ReplicaNonsense(f"the answer is larger than {MAX_WHOLE >> 20} MiB")
            self._pieces.append(bytes(data))
            return
        if not self._opened:
            self._open(self._type, self._fields + self._answer)
        self.begun = True
        self._send(gate.feed(bytes(data)))
        if not last and (self._behind > self._most or self._backlog.bytes > self._backlog.limit):
            raise SlowClient("the client does not take its stream as fast as it is generated")

    def _open(self, content_type: bytes, fields: bytes) -> None:
        self._opened = True
        self.exchange.on_writable = self._writable
        self.exchange.start(200, content_type, fields)

    def _send(self, data: bytes) -> None:
        if not data:
            return
        if not self.exchange.write(data):
            self._slow = True
        if self._slow:
            self._behind += len(data)
            self._backlog.bytes += len(data)

    def _writable(self) -> None:
        """The client has taken what waited in the transport."""
        self._slow = False
        self._caught_up()

    def _caught_up(self) -> None:
        self._backlog.bytes -= self._behind
        self._behind = 0

    def end(self) -> None:
        gate = self._gate
        if gate is None or not self._opened:
            fields = self._fields + self._answer
            self.exchange.respond(200, b"".join(self._pieces), self._type, fields)
            return
        if rest := gate.finish():
            self.exchange.write(rest)
        self._caught_up()
        self.exchange.end()

    def fail(self, error: GatewayError, *, final: bool, said: bytes = b"") -> None:
        exchange = self.exchange
        if not self._opened:
            fields = self._fields + (b"x-should-retry: false\r\n" if final else b"")
            refuse(exchange, error, openai=self._openai, fields=fields)
            return
        self._caught_up()
        if self._gate is not None and not self._gate.whole:
            exchange.abort()
            return
        exchange.write(said or error_event(error, openai=self._openai))
        exchange.last = True  # for clients that wait for the connection's end
        exchange.end()

    def gone(self) -> None:
        """The client has left."""
        self._caught_up()
        self._pieces.clear()

    def look(self, now: float, quiet_since: float) -> None:
        gate = self._gate
        if self._slow or (gate is not None and not gate.whole):
            return
        if not self._opened:
            # Whoever stands between us and the client ends connections that are silent for long.
            if self._stream and now - quiet_since >= self._heartbeat_s:
                self._open(EVENTS, self._fields)
                self._beat = now
                self._send(HEARTBEAT)
            return
        # If a client that sends no more has left, the socket says so.
        every_s = PROBE_S if self.exchange.is_half_closed else self._heartbeat_s
        if now - max(quiet_since, self._beat) >= min(every_s, self._heartbeat_s):
            self._beat = now
            self._send(HEARTBEAT)
