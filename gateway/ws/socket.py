"""One WebSocket: frames in, requests out to the desk, answers back in any order.

Owns the requests that live on it, the answers that wait for a slow client, and the ways of closing.
Plain callbacks of one tunnel of the lane: no task. Invariants: every request it took ends with one
terminal message or with the socket; when the socket is no longer open none is live; what waits in
either direction is bounded by `SocketLimits`.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING

from gateway.errors import GatewayError, LimitReached, Shed
from gateway.lane import Exchange
from gateway.oip.terms import Terms
from gateway.request import TensorRequest
from gateway.tenants import Visit
from gateway.ws.errors import GoingAway
from gateway.ws.frames import (
    CLOSE,
    GOING_AWAY,
    INTERNAL,
    NO_CODE,
    NORMAL,
    PING,
    POLICY,
    PONG,
    TRY_LATER,
    Broken,
    FrameReader,
    close_frame,
    frame,
    read_close,
)
from gateway.ws.messages import (
    asked_by,
    error_frame,
    read_id,
    read_message,
    refuse_tensors,
    text_frame,
)
from gateway.ws.stream import Stream

if TYPE_CHECKING:
    from gateway.ws.surface import WebSocketSurface

log = logging.getLogger(__name__)

# Messages taken in one go: some milliseconds of other connections' time.
SLICE = 64
# What is handed to the transport at once; it asks to wait above 64 KiB.
PIECE = 64 * 1024
# Counted in the statistics where the client went without a close frame; never on the wire.
ABNORMAL = 1006

OPEN, CLOSING, CLOSED = range(3)


class Socket:
    """`terms`: what the connection's headers ask for, for requests that say nothing else."""

    __slots__ = (
        "_exchange",
        "_heard",
        "_held",
        "_hub",
        "_offset",
        "_out",
        "_partial",
        "_pinged",
        "_pong",
        "_reader",
        "_since",
        "_state",
        "_unsent",
        "_visits",
        "_waiting",
        "_writable",
        "asked",
        "live",
        "tenant",
        "timing",
    )

    def __init__(self, hub: WebSocketSurface, exchange: Exchange, terms: Terms) -> None:
        self._hub, self._exchange = hub, exchange
        self.asked, self.timing = asked_by(terms), terms.timing
        self.tenant = exchange.tenant
        self.live: dict[str, TensorRequest | Stream] = {}
        self._visits: dict[str, Visit] | None = None  # of live requests, where there are tenants
        self._reader = FrameReader(hub.limits.max_message)
        self._state = OPEN
        self._held = self._partial = 0  # bytes of live requests, and of a message not whole yet
        self._out: deque[bytes] | None = None  # frames that the transport has not taken
        self._offset = 0  # how much of the first one it has
        self._unsent = 0  # bytes of `_out`
        self._waiting = False  # _flush() will come
        self._writable = True
        self._pong: bytes | None = None
        self._heard = hub.clock()
        self._pinged = False
        self._since = 0.0  # when it became closing, or else unwritable

    @property
    def is_open(self) -> bool:
        return self._state == OPEN

    def open(self, fields: bytes) -> None:
        """Answer the handshake with these header lines; from here on frames come."""
        exchange = self._exchange
        exchange.on_body = self.received
        exchange.on_body_end, exchange.on_gone = self._handshake_read, self.abort
        exchange.on_writable = self.writable
        exchange.start(101, fields=fields)

    def _handshake_read(self) -> None:
        """The first end is that of the handshake's own empty body."""
        self._exchange.on_body_end = self.half_closed

    # ------------------------------------------------------------------------------ what comes in

    def received(self, data: bytes) -> None:
        if self._state != OPEN:
            return
        self._heard, self._pinged = self._hub.clock(), False
        self._reader.feed(data)
        self._take()

    def _take(self) -> None:
        """A slice of the messages that have come; the rest in the loop's next turn."""
        if self._state != OPEN:
            return
        try:
            for _ in range(SLICE):
                event = self._reader.next()
                if event is None:
                    self._came_to_rest()
                    return
                opcode, payload = event
                if opcode < CLOSE:
                    self._message(opcode, payload)
                elif opcode == PING:
                    self._pong = bytes(payload)
                elif opcode == CLOSE:
                    code = read_close(payload)
                    self.close(code, said=NORMAL if code == NO_CODE else code)
                if self._state != OPEN:
                    return
        except Broken as broken:
            self.close(broken.code, broken.reason)
            return
        except Exception:
            log.exception("a WebSocket message failed inside the gateway")
            self.close(INTERNAL, "the gateway failed on this message")
            return
        self._exchange.pause_body()
        self._hub.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._exchange.resume_body()
        self._take()

    def _came_to_rest(self) -> None:
        pong, self._pong = self._pong, None
        if pong is not None:
            # Of several pings only the last needs an answer (RFC 6455 §5.5.3).
            self.write(frame(PONG, pong))
        partial = self._reader.pending
        if partial != self._partial:
            self._hub.held += partial - self._partial
            self._partial = partial
            if self._hub.held > self._hub.limits.max_total:
                self.close(TRY_LATER, "too much is in flight here; try again later")

    def _message(self, opcode: int, payload: bytes | bytearray | memoryview) -> None:
        hub = self._hub
        hub.stats.received += 1
        message = read_message(opcode, payload)
        if message.type == "ping":
            refuse_tensors(message)
            given = message.document.get("id")
            self.write(text_frame("pong", given if type(given) is str else None, {}))
            return
        name = read_id(message.document)
        live = self.live.get(name)
        if message.type == "cancel":
            refuse_tensors(message)
            if live is not None:
                live.gone()
            return
        if live is not None:
            raise Broken(POLICY, f"id {name!r} belongs to a request that has not ended")
        size = len(payload)
        refusal = self._refusal(size)
        if refusal is not None:
            self.write(error_frame(name, refusal))
        else:
            hub.desk.begin(self, name, message, self._heard, size)

    def _refusal(self, size: int) -> GatewayError | None:
        limits, live = self._hub.limits, len(self.live)
        if self._hub.draining:
            return GoingAway("the server is going down; connect again")
        if live >= limits.max_in_flight:
            return LimitReached(f"{live} requests are in flight on this socket, the most it takes")
        if live and self._held + size > limits.max_held:
            return LimitReached(
                f"the requests in flight on this socket and this one take more than "
                f"{limits.max_held} bytes"
            )
        if self._hub.held + size > limits.max_total:
            return Shed("too much is in flight here; try again later")
        return None

    # ---------------------------------------------------------------------------- for the requests

    def enter(self, name: str, model: str, tokens: float = 0.0) -> Visit | None:
        """Admit the request `name` to the model; None where there are no tenants. It ends with the
        request. Raises GatewayError."""
        if self.tenant is None:
            return None
        visit = self.tenant.take(model, tokens)
        if self._visits is None:
            self._visits = {}
        self._visits[name] = visit
        return visit

    def taken(self, size: int) -> None:
        self._held += size
        self._hub.held += size

    def ended(self, name: str, size: int) -> None:
        self.live.pop(name, None)
        if self._visits and (visit := self._visits.pop(name, None)) is not None:
            visit.end()
        self._held -= size
        self._hub.held -= size
        if self._hub.draining and not self.live:
            self._hub.loop.call_soon(self.drain)  # behind the terminal message

    def write(self, data: bytes) -> bool:
        """Queue one frame. False: it waits for a slow client, or the socket is closing."""
        if self._state != OPEN:
            return False
        self._hub.stats.sent += 1
        self._queue(data)
        if self._unsent > self._hub.limits.max_unsent and not self._writable:
            self._give_up("answers wait that are not taken")
        elif self._hub.held > self._hub.limits.max_total and not self._writable:
            self._give_up("too much waits here; try again later", TRY_LATER)
        return self._writable

    # ---------------------------------------------------------------------------- what goes out

    def _queue(self, data: bytes) -> None:
        if self._out is None:
            self._out = deque()
        self._out.append(data)
        self._unsent += len(data)
        self._hub.held += len(data)
        if self._writable and not self._waiting:
            # The answers of one batch come one by one in this turn and leave together in the next.
            self._waiting = True
            self._hub.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._waiting = False
        while self._out and self._writable and self._state != CLOSED:
            self._writable = self._exchange.write(self._next_piece(self._out))
            if not self._writable and self._state == OPEN:
                self._since = self._hub.clock()
        if self._out:
            return
        self._out = None
        if self._state == CLOSING:
            self._let_go(abort=False)

    def _next_piece(self, out: deque[bytes]) -> bytes | memoryview:
        first = out[0]
        if len(first) > PIECE:
            start = self._offset
            piece = memoryview(first)[start : start + PIECE]
            self._offset += len(piece)
            if self._offset == len(first):
                out.popleft()
                self._offset = 0
            self._sent(len(piece))
            return piece
        pieces: list[bytes] = []
        size = 0
        while out and size + len(out[0]) <= PIECE:
            size += len(out[0])
            pieces.append(out.popleft())
        self._sent(size)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _sent(self, size: int) -> None:
        self._unsent -= size
        self._hub.held -= size

    def writable(self) -> None:
        """The client has taken what waited in the transport."""
        self._writable = True
        self._flush()
        if self._writable and self._state == OPEN:
            for request in list(self.live.values()):
                if type(request) is Stream:
                    request.pass_writable()

    # ------------------------------------------------------------------------------------ the end

    def close(self, code: int, reason: str = "", *, said: int | None = None) -> None:
        """Say so behind what is written already, and end. `said`: the code to answer with."""
        if self._state != OPEN:
            return
        self._end_requests(CLOSING, code)
        self._queue(close_frame(code if said is None else said, reason))

    def _give_up(self, reason: str, code: int = POLICY) -> None:
        """The client does not read: drop what it has not begun to get. It may still see why."""
        out = self._out
        if out:
            first = out.popleft() if self._offset else None
            for data in out:
                self._sent(len(data))
            out.clear()
            if first is not None:
                out.append(first)
        self.close(code, reason)

    def half_closed(self) -> None:
        """The client will say no more. One that has not closed the socket before has broken off."""
        if self._state == OPEN:
            self.abort()

    def abort(self) -> None:
        """The connection is gone, or its client is as good as gone: nobody reads a close frame."""
        if self._state == OPEN:
            self._end_requests(CLOSED, ABNORMAL)
        self._let_go(abort=True)

    def _end_requests(self, state: int, code: int) -> None:
        self._state = state
        self._since = self._hub.clock()
        # Codes from 3000 on are the client's own: counted together, they are no labels of ours.
        self._hub.stats.closed[min(code, 3000)] += 1
        self._hub.stats.abandoned += len(self.live)
        self._hub.held -= self._partial
        self._partial = 0
        for request in list(self.live.values()):
            request.gone()

    def _let_go(self, *, abort: bool) -> None:
        """After a close frame the lane reads on for a moment, so that it arrives."""
        exchange = self._exchange
        if self._hub.forget(self):
            self._state = CLOSED
            self._sent(self._unsent)
            self._out = None
            if abort:
                exchange.abort()
            else:
                exchange.end()

    # ------------------------------------------------------------------------------- now and then

    def drain(self) -> None:
        """Close as soon as nothing is live."""
        if not self.live:
            self.close(GOING_AWAY, "the server is going down")

    def cut(self) -> None:
        """The grace is over."""
        self.close(GOING_AWAY, "the server is going down")

    def sweep(self, now: float) -> None:
        limits = self._hub.limits
        if self._state == CLOSING:
            if now - self._since > limits.close_s:
                self.abort()
        elif not self._writable:
            if now - self._since > limits.stall_s:
                self._give_up("the answers are not taken")
        elif now - self._heard > limits.ping_s * (2 if self._pinged else 1):
            if self._pinged:
                self.abort()
            else:
                self._pinged = True
                self._queue(frame(PING, b""))
