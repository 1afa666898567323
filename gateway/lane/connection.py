"""One client connection, as its socket's events: bytes in, requests out, in order.

What a head or a body may say is decided in `head`, `framing` and `body`; how answers leave, in
`turns`. Invariant: bytes are taken exactly once, by one request, by the application, or by nobody
once an answer has said that the connection closes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, cast

from gateway.lane.body import Body
from gateway.lane.exchange import ENDED, OPEN, Exchange, Handler
from gateway.lane.framing import Framing
from gateway.lane.handover import Guest
from gateway.lane.pattern import RequestHead
from gateway.lane.probe import ResetWatch
from gateway.lane.refusal import Refused
from gateway.lane.response import error_body
from gateway.lane.timeouts import Outflow
from gateway.lane.turns import (
    AWAY,
    CLOSED,
    DEAF,
    DRAINING,
    EOF,
    FULL,
    HOLD,
    MORE,
    PARTIAL,
    PAUSED,
    PUMPING,
    SHUT,
    TURN,
    UNREAD,
    Turns,
)

if TYPE_CHECKING:
    from gateway.lane.lane import Lane

_CRLF, _HEAD_END = b"\r\n", b"\r\n\r\n"


class Connection(Turns):
    __slots__ = ("_guess", "_guest")

    def __init__(self, lane: Lane) -> None:
        super().__init__(lane)
        self._guess = 0  # the length of the last head
        self._guest: Guest | None = None

    # ------------------------------------------------------------------------- the socket's events

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.lane.opened(self)

    def data_received(self, data: bytes) -> None:
        if self.front is None and not self._flags and self._body is None:
            # One whole plain request and nothing else going on: nearly every request. A client
            # repeats its heads, so their length is guessed before it is searched for.
            lane = self.lane
            end = self._guess
            head = lane.heads.memo.get(data[:end])
            if head is None and (pattern := lane.heads.patterns.get(end)) is not None:
                head = pattern.read(data)
            if head is None:
                self._guess = 0
                end = data.find(_HEAD_END) + 4
                try:
                    head = lane.heads.find(data, end) if end > 3 else None
                except Refused:
                    head = None  # and again below
            if head is not None:
                framing = head.framing
                if framing.simple and end + framing.length == len(data):
                    handler = lane.resolve(head.method, head.path)
                    if lane.guard is not None:
                        handler = lane.guard(head, handler)
                    if handler is not None:
                        self._guess = end
                        if handler.streams:
                            self._begin(head, handler)
                            self._receive(data[end:])
                            return
                        self.since = now = lane.clock()
                        self.front = exchange = Exchange(self, head, data[end:], now, True)
                        lane.stats.requests += 1
                        try:
                            handler(exchange)
                        except Exception:
                            exchange.failed()
                        return
        self._receive(data)

    def eof_received(self) -> bool:
        if self._flags & EOF:
            return True  # asyncio says it again when reading is resumed
        self._flags |= EOF
        if self.front is None or self._flags & SHUT or self.tls:
            return False  # nothing is owed; and TLS knows no half-close
        self.front.simple = False
        body = self._body
        if body is not None and body.tunnel and body.exchange is not None:
            body.exchange.pass_end()
        elif body is not None:
            self._refuse(Refused(400, "the request's body ends early"))
        ResetWatch(self)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if self._flags & AWAY:
            self.lane.stats.handed -= 1
        self._flags = (self._flags | CLOSED | DEAF) & ~AWAY
        self._input = None
        self._end_body()
        self.lane.closed(self)
        self._drop_exchanges()
        if self._guest is not None:
            self._guest.lost(exc)
            self._guest = None

    # --------------------------------------------------------------------------- requests coming in

    def _receive(self, data: bytes) -> None:
        if self._flags & DEAF:
            self._drop(len(data))
            return
        if self._input is not None:
            data, self._input = self._input[self._taken :] + data, None
        self._pump(data, 0)

    def _resume(self) -> None:
        super()._resume()
        if self._input is not None and not self._flags & (PUMPING | CLOSED | AWAY):
            data, self._input = self._input, None
            self._pump(data, self._taken)

    def _pump(self, data: bytes, at: int) -> None:
        """Begin as many requests from `data[at:]` as may be in flight, and keep the rest."""
        self._flags |= PUMPING
        try:
            while at < len(data) and not self._flags & (HOLD | DEAF | AWAY):
                body = self._body
                if body is not None:
                    at = body.feed(data, at)
                    if body.done:
                        self._body_done(body)
                    elif body.ends_turn():
                        self._hold(PAUSED)
                        self.lane.loop.call_soon(self._release, PAUSED)
                    continue
                taken = self._take_request(data, at)
                if taken == at:
                    break
                at = taken
        except Refused as refusal:
            self._refuse(refusal)
        finally:
            self._flags &= ~PUMPING
        if at < len(data):
            if self._flags & DEAF:
                self._drop(len(data) - at)
            else:
                # The rest of a head is small, and may have to be kept for long.
                self._input, self._taken = (data[at:], 0) if self._flags & PARTIAL else (data, at)
        self._invite()
        self._settle()

    def _take_request(self, data: bytes, at: int) -> int:
        """Begin the request at `at`; returns where its head ends, `at` if it cannot begin yet."""
        while data.startswith(_CRLF, at):
            at += 2  # RFC 9112 §2.2: an empty line before a request is passed over
        end = data.find(_HEAD_END, at) + 4
        if end < 4:
            self._await_head(data[at:])
            return at
        self._flags &= ~PARTIAL
        head = self.lane.heads.read(data[at:end])
        handler = self.lane.resolve(head.method, head.path)
        if self.lane.guard is not None:
            handler = self.lane.guard(head, handler)
        if handler is not None:
            self._begin(head, handler)
            return end
        if self.lane.hand_over is None:
            raise Refused(404, f"there is nothing at {head.path}")
        if self.front is not None:
            self.front.simple = False
            self._hold(TURN)
            return at
        self._hand_over(head, data[at:], end - at)
        return len(data)

    def _await_head(self, part: bytes) -> None:
        self.lane.heads.check_part(part)
        if part and not self._flags & PARTIAL:
            self._flags |= PARTIAL
            self.since = self.lane.clock()

    def _begin(self, head: RequestHead, handler: Handler) -> None:
        limits, framing = self.lane.limits, head.framing
        if framing.length > limits.max_body:
            raise Refused(413, f"the body is larger than {limits.max_body} bytes")
        if framing.unknown_encoding and not handler.streams:
            accepted = b"accept-encoding: gzip, deflate\r\n"
            raise Refused(501, "the body's content-encoding is not known here", accepted)
        self.since = now = self.lane.clock()
        exchange = Exchange(self, head, b"", now, False)
        self._enqueue(exchange)
        if framing.length:
            whom = None if handler.streams else handler
            self._body = Body(exchange, whom, framing, self.lane, now)
        elif not framing.keep_alive:
            self._flags |= DEAF
        elif framing.upgrade and handler.streams:
            self._hold(TURN)  # what follows may be no HTTP: the answer tells
        else:
            self._simplify()
        if handler.streams or not framing.length:
            self.lane.stats.requests += 1
            exchange.call(handler)
        if handler.streams and not framing.length:
            exchange.pass_end()

    def _enqueue(self, exchange: Exchange) -> None:
        if self.front is None:
            self.front = exchange
            return
        self.front.simple = False
        if self._behind is None:
            self._behind = deque()
        self._behind.append(exchange)
        if len(self._behind) + 1 >= self.lane.limits.pipeline:
            self._hold(FULL)

    def _body_done(self, body: Body) -> None:
        exchange = body.exchange
        if exchange is None:
            self._end_body()
            return
        if exchange.last:
            self._flags |= DEAF
        if body.handler is not None:
            exchange.body = body.whole()
        self._end_body()
        self._simplify()
        if body.handler is None:
            exchange.pass_end()
        else:
            self.lane.stats.requests += 1
            exchange.call(body.handler)

    # ------------------------------------------------------------------------------- to others

    def _hand_over(self, head: RequestHead, data: bytes, head_bytes: int) -> None:
        """To the application, from this request's first byte on."""
        lane = self.lane
        assert lane.hand_over is not None
        lane.stats.handed_over += 1
        lane.stats.handed += 1
        self._flags |= AWAY
        if self._guest is None:
            self._guest = Guest(self, lane.hand_over())
        self._guest.take(head.framing, data, head_bytes)

    def take_back(self, rest: bytes) -> None:
        """The application has answered; `rest` is what the client has sent since."""
        self._flags &= ~AWAY
        self.lane.stats.handed -= 1
        self.since = self.lane.clock()
        self.transport.set_protocol(self)
        if rest:
            self.data_received(rest)
        self._settle()

    def _refuse(self, refusal: Refused) -> None:
        """Answer for the lane itself, in turn, and take no further request."""
        self.lane.stats.refused += 1
        self._flags = (self._flags | DEAF | MORE) & ~PARTIAL
        body = self._body
        self._end_body()
        exchange = body.exchange if body is not None else None
        if body is None:
            head = RequestHead("GET", "", "", [], Framing(keep_alive=False))
            exchange = Exchange(self, head, b"", self.lane.clock(), False)
            self._enqueue(exchange)
        elif exchange is None:
            self._settle()  # its answer is given; only the rest of its body was still to come
            return
        elif body.handler is None:
            exchange.pass_gone()
        assert exchange is not None
        if exchange.phase == OPEN:
            exchange.last = True
            exchange.respond(refusal.status, error_body(refusal.message), fields=refusal.fields)
        elif exchange.phase != ENDED:
            self.abandon(exchange)

    def _drop(self, size: int) -> None:
        self._flags |= MORE
        self._dropped += size
        if self._dropped > self.lane.limits.linger_bytes:
            self._close(abort=True)

    def note_writing(self, *, paused: bool) -> None:
        """Flow control while the application has the connection."""
        self._flags = self._flags | UNREAD if paused else self._flags & ~UNREAD

    # ------------------------------------------------------------------------------------- the lane

    def drain(self) -> None:
        """The next answer that ends with nothing behind it is the last."""
        self._flags |= DRAINING
        if self.front is not None:
            self.front.simple = False
        if self._flags & AWAY and self._guest is not None:
            self._guest.drain()

    def close_if_idle(self) -> None:
        """After drain()."""
        if self._flags & AWAY and self._guest is not None:
            self._guest.drain()
        self._settle()

    def sweep(self, now: float) -> None:
        """Time limits, looked at now and then instead of a timer for each request. `since`: when
        the last request began or was seen in flight, or the first byte of an unfinished head."""
        limits, flags, body = self.lane.limits, self._flags, self._body
        if flags & (UNREAD | CLOSED):
            if self._outflow is None:
                self._outflow = Outflow()
            left = self.transport.get_write_buffer_size()
            if self._outflow.is_stalled(left, now, limits):
                self.time_out(abort=True)
        elif flags & SHUT:
            if now - self.since > limits.linger_s:
                self._close()
        elif flags & AWAY and self._guest is not None:
            self._guest.sweep(now)
        elif body is not None:
            if flags & HOLD or body.tunnel:
                body.pace.restart(now)
            elif body.pace.is_slow(now, limits):
                self.lane.stats.timeouts += 1
                self._refuse(Refused(408, "the request's body came too slowly"))
        elif flags & PARTIAL:
            if now - self.since > limits.head_timeout_s:
                self.lane.stats.timeouts += 1
                self._refuse(Refused(408, "the request's head came too slowly"))
        elif self.front is not None:
            self.since = now
        elif now - self.since > limits.idle_timeout_s:
            self.time_out()

    def time_out(self, *, abort: bool = False) -> None:
        self.lane.stats.timeouts += 1
        self._close(abort=abort)
