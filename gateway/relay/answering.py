"""The answer's half of a transit: from the upstream's connection to the client.

Passes bytes on as they come, holds the upstream back when the client is slow, and speaks for
itself only between the events of a stream. What becomes of the request is decided in `transit`.
Invariant: nothing reaches the client before the answer is accepted; after that it is this one's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.errors import GatewayError
from gateway.lane import Exchange
from gateway.relay.connection import Headers, UpstreamConnection
from gateway.relay.events import HEARTBEAT, EventGate
from gateway.relay.goodbye import Leaving, to_client, to_upstream
from gateway.relay.head import read_answer, upgrade_fields
from gateway.relay.reply import error_event

if TYPE_CHECKING:
    from gateway.relay.asked import Asked
    from gateway.relay.destination import Destination
    from gateway.relay.usage import Meter

# What the transit waits for: a replica; a connection; the answer's head; its first byte; more of
# it; the end of a tunnel; nothing.
SEATING, CONNECTING, HEAD, FIRST, BODY, TUNNEL, ENDED = range(7)

# A client that sends no more has probably left: it is told something this often.
PROBE_S = 0.1


class Answering:
    __slots__ = (
        "_beat",
        "_gate",
        "_headers",
        "_held_back",
        "_inward",
        "_moved",
        "_outward",
        "_pieces",
        "_since",
        "_status",
        "asked",
        "connection",
        "destination",
        "exchange",
        "meter",
        "phase",
        "started",
    )

    def __init__(self, destination: Destination, exchange: Exchange, asked: Asked) -> None:
        self.destination, self.exchange, self.asked = destination, exchange, asked
        self.connection: UpstreamConnection | None = None
        self.phase = SEATING
        self.meter: Meter | None = None  # where what it costs is somebody's
        self.started = False  # something of an answer has gone to the client
        self._status = 0
        self._headers: Headers = []
        self._pieces: list[bytes] = []
        self._gate: EventGate | None = None
        # A WebSocket's two directions: to the client, and to the upstream.
        self._outward: Leaving | None = None
        self._inward: Leaving | None = None
        self._held_back = False  # the upstream, by a slow client
        # Activity, noted without a clock: the tick that sees `_moved` sets `_since`.
        self._moved = False
        self._since = self._beat = 0.0

    def own_fields(self) -> bytes:
        """What the gateway itself says in the answer's head."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------- bytes coming

    def upstream_interim(self, status: int, headers: Headers) -> None:
        self._moved = True
        if status != 100:  # that one was between us and the upstream
            self.exchange.inform(status, read_answer(headers).fields)

    def upstream_body(self, chunk: bytes) -> None:
        self._pieces.append(chunk)

    def upstream_read(self) -> None:
        self._moved = True
        if self.phase >= FIRST:
            self._pass_on()

    def upstream_upgraded(self, early: bytes) -> None:
        exchange = self.exchange
        exchange.on_writable = self.client_writable
        exchange.on_body, exchange.on_body_end = self._tunnel_body, self._tunnel_end
        self.phase, self.started, self._moved = TUNNEL, True, True
        if (self.exchange.header(b"upgrade") or b"").lower() == b"websocket":
            self._outward, self._inward = to_client(), to_upstream()
        exchange.start(101, fields=upgrade_fields(self._headers) + self.own_fields())
        if early:
            self._pieces.append(early)
            self._pass_on()

    def _tunnel_body(self, piece: bytes) -> None:
        self._moved = True
        if self._inward is not None:
            piece = self._inward.pass_on(piece)
        if self.connection is not None and piece and not self.connection.send(piece):
            self.exchange.pause_body()
        self._part()

    def say_goodbye(self) -> None:
        """The gateway is going down: a WebSocket is closed to both sides, between two frames."""
        outward, inward = self._outward, self._inward
        if self.phase != TUNNEL or outward is None or inward is None:
            return
        if said := outward.leave():
            self.exchange.write(said)
        if (said := inward.leave()) and self.connection is not None:
            self.connection.send(said)
        self._part()

    def _part(self) -> None:
        """Once both sides have been told that it is over, it is."""
        outward, inward = self._outward, self._inward
        if outward is not None and inward is not None and outward.said and inward.said:
            self._outward = self._inward = None
            self.parted()

    def parted(self) -> None:
        """The two sides of a tunnel have nothing more to say to each other."""
        raise NotImplementedError

    def _tunnel_end(self) -> None:
        if self.connection is not None:
            self.connection.half_close()

    # -------------------------------------------------------------------------- bytes going onward

    def _pass_on(self) -> None:
        """All that one read has brought, in one write."""
        if not self.started:
            self._start()
        pieces = self._pieces
        if not pieces:
            return
        if self.phase == FIRST:
            self.phase = BODY
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        if self._gate is not None:
            data = self._gate.feed(data)
        elif self._outward is not None:
            data = self._outward.pass_on(data)
        if self.meter is not None and data and self._status < 400:
            data = self.meter.piece(data, events=self._gate is not None)
        if data and not self.exchange.write(data):
            self._held_back = True
            if self.connection is not None:
                self.connection.pause()
        if self._outward is not None:
            self._part()

    def _start(self) -> None:
        answer = read_answer(self._headers)
        self.started = True
        self.exchange.on_writable = self.client_writable
        if answer.events:
            self._gate = EventGate()
        if self.meter is not None and answer.length is not None:
            self.meter.keep()
        fields = answer.fields + self.own_fields()
        self.exchange.start(self._status, answer.content_type, fields, answer.length)

    def _answer_whole(self) -> None:
        """The answer is complete."""
        exchange, pieces = self.exchange, self._pieces
        if not self.started:
            if not self.asked.is_head:
                answer = read_answer(self._headers)
                body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
                if self.meter is not None:
                    body = self.meter.whole(self._status, body, events=answer.events)
                fields = answer.fields + self.own_fields()
                exchange.respond(self._status, body, answer.content_type, fields)
                return
            self._start()
        self._pass_on()
        if self._gate is not None and (rest := self._gate.finish()):
            exchange.write(rest)
        exchange.end()

    def client_writable(self) -> None:
        if self._held_back:
            self._held_back, self._moved = False, True
            if self.connection is not None:
                self.connection.resume()

    # ------------------------------------------------------------------------ the gateway's words

    def _keep_alive(self, now: float, every_s: float) -> None:
        """A comment for a client that has heard nothing for so long, and would hear it."""
        gate = self._gate
        if gate is None or not gate.whole or self._held_back:
            return
        if self.exchange.is_half_closed:
            every_s = min(every_s, PROBE_S)  # if nobody is there, the socket says so
        if now - max(self._since, self._beat) >= every_s:
            self._beat = now
            self._held_back = not self.exchange.write(HEARTBEAT)

    def _break_off(self, error: GatewayError) -> None:
        """The answer cannot be completed, and the client must see it."""
        exchange = self.exchange
        if self._gate is None or not self._gate.whole:
            exchange.abort()
            return
        exchange.write(error_event(error, openai=self.destination.openai))
        exchange.last = True  # for SDKs that wait for the connection's end
        exchange.end()
