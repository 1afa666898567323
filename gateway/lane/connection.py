"""One client connection: bytes in, exchanges out, answers back in the order of their requests.

Owns the socket's state; what a head or body may say is decided in `head` and `body`, how an answer
looks in `exchange`. Invariant: `front` is the exchange whose turn it is to write, and every
exchange that a handler was given ends by its own end() or abort(), or by one on_gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, cast

from backends.wire import Buffer
from gateway.lane.body import Body
from gateway.lane.exchange import ENDED, OPEN, Exchange, Handler
from gateway.lane.head import RequestHead
from gateway.lane.refusal import Refused
from gateway.lane.response import CONTINUE, error_body

if TYPE_CHECKING:
    from gateway.lane.lane import Lane

log = logging.getLogger(__name__)

# Why no request is read: the client does not take its answers, too many are in flight, the handler
# has paused a body, the next request is for the application but earlier answers are still out.
UNREAD, FULL, PAUSED, TURN = 1, 2, 4, 8
HOLD = UNREAD | FULL | PAUSED | TURN
# Further: inside _pump(), an unfinished head waits, the client has shut its side, drain() was
# called, input is dropped, the last answer is out, the socket is gone.
PUMPING, PARTIAL, EOF, DRAINING, DEAF, SHUT, LOST = 16, 32, 64, 128, 256, 512, 1024
# Answers beyond this end before a body does: it is not worth reading on to keep the connection.
WORTH_READING = 64 * 1024
_LEADING = b"\r\n"


class Connection(asyncio.Protocol):
    __slots__ = (
        "_behind",
        "_body",
        "_count",
        "_flags",
        "_input",
        "front",
        "lane",
        "since",
        "transport",
    )

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.transport: asyncio.Transport = cast("asyncio.Transport", None)
        self.front: Exchange | None = None
        self._behind: deque[Exchange] | None = None
        self._body: Body | None = None
        self._input: bytearray | None = None
        self._count = 0  # bytes: dropped while lingering, or unsent when the sweep last looked
        self._flags = 0
        self.since = 0.0

    # ------------------------------------------------------------------------- the socket's events

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.lane.opened(self)

    def data_received(self, data: bytes) -> None:
        if self.front is None and not self._flags:
            # One whole plain request whose head has been seen before: nearly every request.
            end = data.find(b"\r\n\r\n") + 4
            lane = self.lane
            head = lane.heads.memo.get(data[:end])
            if head is not None and head.simple and end + head.length == len(data):
                handler = lane.resolve(head.method, head.path)
                if handler is not None and not handler.streams:
                    self.since = now = lane.clock()
                    self.front = exchange = Exchange(self, head, data[end:], now, True)
                    lane.stats.requests += 1
                    try:
                        handler(exchange)
                    except Exception:
                        self._handler_failed(exchange)
                    return
        self._receive(data)

    def eof_received(self) -> bool:
        if self.front is None or self._flags & DEAF or self.tls:
            return False  # nothing is owed, or TLS, which knows no half-close
        self._flags |= EOF
        self.front.simple = False
        if self._body is not None:
            self._refuse(Refused(400, "the request's body ends early"))
        return True

    def pause_writing(self) -> None:
        self._hold(UNREAD)

    def resume_writing(self) -> None:
        front = self.front
        self._release(UNREAD)
        if front is not None and front is self.front and front.on_writable is not None:
            front.on_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        self._flags |= LOST
        self._input = self._body = None
        self.lane.closed(self)
        self._drop_exchanges()

    # --------------------------------------------------------------------------- requests coming in

    def _receive(self, data: bytes) -> None:
        if self._flags & (DEAF | LOST):
            self._dropped(len(data))
            return
        if self._input is not None:
            self._input += data
            if self._flags & HOLD:
                return
            data = self._take_input()
        self._pump(data)

    def _take_input(self) -> bytes:
        data, self._input = self._input, None
        self._flags &= ~PARTIAL
        return bytes(data or b"")

    def _pump(self, data: bytes) -> None:
        """Begin as many requests from `data` as may be in flight; keep the rest in `_input`."""
        at = 0
        self._flags |= PUMPING
        try:
            while at < len(data) and not self._flags & (HOLD | DEAF | LOST):
                if self._body is not None:
                    at = self._body.feed(data, at)
                    self._body_fed()
                    continue
                stop = self._next_request(data, at)
                if stop < 0:
                    break
                at = stop
        except Refused as refusal:
            self._refuse(refusal)
        finally:
            self._flags &= ~PUMPING
        if self._flags & (DEAF | LOST):
            return
        if at < len(data):
            self._input = bytearray(data[at:] if at else data)
        self._settle()

    def _next_request(self, data: bytes, at: int) -> int:
        """Where the next request's head ends; -1 when it cannot begin yet."""
        while data[at : at + 1] in (b"\r", b"\n") and data[at : at + 2] in (b"\r\n", b"\r"):
            # RFC 9112 §2.2: an empty line before the request line is passed over.
            if data[at : at + 2] == b"\r":
                return self._wait_for_head(data, at)
            at += 2
        end = data.find(b"\r\n\r\n", at)
        if end < 0:
            return self._wait_for_head(data, at)
        end += 4
        head = self.lane.heads.read(data[at:end])
        handler = self.lane.resolve(head.method, head.path)
        if handler is None:
            if self.front is not None:
                self._hold(TURN)
                return -1
            raise Refused(404, f"there is nothing at {head.path}")
        self._begin(head, handler)
        return end

    def _wait_for_head(self, data: bytes, at: int) -> int:
        limits = self.lane.limits
        if len(data) - at > limits.max_head:
            raise Refused(431, f"the request's head is larger than {limits.max_head} bytes")
        if not self._flags & PARTIAL:
            self._flags |= PARTIAL
            self.since = self.lane.clock()
        return -1

    def _begin(self, head: RequestHead, handler: Handler) -> None:
        lane, limits = self.lane, self.lane.limits
        if head.length > limits.max_body:
            raise Refused(413, f"the body is larger than {limits.max_body} bytes")
        if head.unknown_encoding and not handler.streams:
            accepted = b"accept-encoding: gzip, deflate\r\n"
            raise Refused(501, "the body's content-encoding is not known here", accepted)
        now = self.since = lane.clock()
        simple = head.simple and self.front is None and not self._flags & ~PUMPING
        simple = simple and not handler.streams
        exchange = Exchange(self, head, b"", now, simple)
        self._enqueue(exchange)
        if not head.length:
            self._dispatch(exchange, handler)
            if handler.streams and exchange.on_body_end is not None:
                exchange.on_body_end()
            return
        self._body = Body(exchange, handler, head, limits, now)
        if handler.streams:
            self._dispatch(exchange, handler)
        wanted = self._body is not None and exchange.phase == OPEN
        if head.expects_continue and wanted and exchange is self.front:
            self.transport.write(CONTINUE)

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

    def _dispatch(self, exchange: Exchange, handler: Handler) -> None:
        self.lane.stats.requests += 1
        try:
            handler(exchange)
        except Exception:
            self._handler_failed(exchange)

    def _body_fed(self) -> None:
        body = self._body
        if body is None or not body.done:
            return
        self._body = None
        exchange = body.exchange
        if exchange is None:
            return
        if not body.handler.streams:
            exchange.body = body.whole()
            self._dispatch(exchange, body.handler)
        elif exchange.on_body_end is not None:
            exchange.on_body_end()

    def _handler_failed(self, exchange: Exchange) -> None:
        log.exception("the handler of %s %s raised", exchange.method, exchange.path)
        if exchange.phase == OPEN:
            exchange.respond(500, error_body("internal error"))
        else:
            exchange.abort()

    # ---------------------------------------------------------------------------- answers going out

    def answering(self, exchange: Exchange) -> None:
        """The exchange's head is about to be rendered: is it the connection's last?"""
        body = self._body
        if body is not None and body.exchange is exchange and not body.done:
            left = body.left
            if exchange.head.expects_continue or left is None or left > WORTH_READING:
                exchange.close = True
        if self._flags & DRAINING and not self._behind:
            exchange.close = True

    def send(self, exchange: Exchange, data: Buffer) -> bool:
        if exchange is self.front:
            self.transport.write(data)
            return not self._flags & UNREAD
        if exchange.held is None:
            exchange.held = []
        exchange.held.append(data)
        return False

    def finished(self, exchange: Exchange) -> None:
        """The exchange has written its last byte: let the next one write."""
        exchange.on_gone = exchange.on_writable = exchange.on_body = exchange.on_body_end = None
        body = self._body
        if body is not None and body.exchange is exchange:
            body.exchange = None
            self._release(PAUSED)
        if exchange is not self.front:
            return
        front: Exchange | None = exchange
        while front is not None and front.phase == ENDED:
            if front.close:
                self._shut()
                return
            self.front = front = self._behind.popleft() if self._behind else None
            if front is not None:
                self._turn(front)
        self._release(FULL if front is not None else FULL | TURN)
        self._settle()

    def _turn(self, exchange: Exchange) -> None:
        """What it has written while it waited goes out now."""
        held, exchange.held = exchange.held, None
        for data in held or ():
            self.transport.write(data)
        if exchange.phase != ENDED and exchange.on_writable is not None:
            exchange.on_writable()

    def abandon(self, exchange: Exchange) -> None:
        """Break the connection off; the answers before this exchange's still go out."""
        breaks = exchange.ends_with_connection
        held = exchange.held
        exchange.forget()
        exchange.close, exchange.held = True, held
        if exchange is self.front:
            self._drop_exchanges()
            # A body that ends with the connection looks cut off only after a reset.
            self.transport.abort() if breaks else self.transport.close()

    # -------------------------------------------------------------------------------- flow of bytes

    def pause_body(self, exchange: Exchange) -> None:
        if self._body is not None and self._body.exchange is exchange:
            self._hold(PAUSED)

    def resume_body(self, exchange: Exchange) -> None:
        self._release(PAUSED)

    def _hold(self, why: int) -> None:
        if not self._flags & HOLD and not self._flags & LOST:
            self.transport.pause_reading()
        self._flags |= why

    def _release(self, why: int) -> None:
        if not self._flags & why:
            return
        self._flags &= ~why
        if self._flags & (HOLD | LOST):
            return
        self.transport.resume_reading()
        if self._input is not None and not self._flags & PUMPING:
            self._pump(self._take_input())

    # -------------------------------------------------------------------------------------- the end

    def _settle(self) -> None:
        """Close when nothing is in flight and nothing more can or may come."""
        if self.front is None and self._body is None and not self._flags & PUMPING:
            done = EOF if self._input is None else 0
            if self._flags & (done | DRAINING) and not self._flags & PARTIAL:
                self.transport.close()

    def _refuse(self, refusal: Refused) -> None:
        """Answer for the lane itself, in turn, and read no further."""
        self.lane.stats.refused += 1
        body, self._body = self._body, None
        self._flags |= DEAF
        exchange = body.exchange if body is not None else None
        if body is not None and (exchange is None or not self._take_back(exchange, body)):
            self.transport.close()
            return
        if exchange is None:
            head = RequestHead()
            head.keep_alive = False
            exchange = Exchange(self, head, b"", self.lane.clock(), False)
            self._enqueue(exchange)
        exchange.close = True
        exchange.respond(refusal.status, error_body(refusal.message), fields=refusal.fields)

    def _take_back(self, exchange: Exchange, body: Body) -> bool:
        """Whether the lane may still answer an exchange whose body went wrong."""
        if not body.handler.streams:
            return True
        exchange.tell_gone()
        if exchange.phase == OPEN:
            return True
        self.abandon(exchange)
        return False

    def _shut(self) -> None:
        """The last answer is written. What the client still sends is read and dropped for a while:
        closing with bytes unread would reset the connection, and the answer with it."""
        unread = self._flags & DEAF or self._body is not None or self._input is not None
        self._drop_exchanges()
        self._body = self._input = None
        if not unread or self._flags & (EOF | LOST) or not self.transport.can_write_eof():
            self.transport.close()
            return
        self._flags |= DEAF | SHUT
        self.since, self._count = self.lane.clock(), 0
        self.transport.write_eof()
        self._release(HOLD)

    def _dropped(self, size: int) -> None:
        self._count += size
        if self._count > self.lane.limits.linger_bytes:
            self.transport.abort()

    def _drop_exchanges(self) -> None:
        """Nobody will read what these would answer."""
        front, behind = self.front, self._behind
        self.front = self._behind = None
        for exchange in (front, *(behind or ())):
            if exchange is not None and exchange.phase != ENDED:
                self.lane.stats.gone += 1
                exchange.tell_gone()
                exchange.forget()

    def drain(self) -> None:
        """Take no further request after those in flight."""
        self._flags |= DRAINING
        if self.front is not None:
            self.front.simple = False
        self._settle()

    def sweep(self, now: float) -> None:
        """Time limits, looked at now and then instead of a timer for each request."""
        limits, flags = self.lane.limits, self._flags
        if flags & SHUT:
            if now - self.since > limits.linger_s:
                self.transport.abort()
        elif flags & UNREAD:
            left = self.transport.get_write_buffer_size()
            if left != self._count:
                self._count, self.since = left, now
            elif now - self.since > limits.write_timeout_s:
                self._time_out()
        elif self._body is not None:
            if flags & HOLD or self._body.progress(now, limits):
                return
            self.lane.stats.timeouts += 1
            self._refuse(Refused(408, "the request's body came too slowly"))
        elif flags & PARTIAL:
            if now - self.since > limits.head_timeout_s:
                self.lane.stats.timeouts += 1
                self._refuse(Refused(408, "the request's head came too slowly"))
        elif self.front is not None:
            self.since = now
        elif now - self.since > limits.idle_timeout_s:
            self.lane.stats.timeouts += 1
            self.transport.close()

    def _time_out(self) -> None:
        self.lane.stats.timeouts += 1
        self.transport.abort()

    @property
    def peer(self) -> str:
        name = self.transport.get_extra_info("peername")
        return str(name[0]) if isinstance(name, tuple) and name else ""

    @property
    def tls(self) -> bool:
        return self.transport.get_extra_info("sslcontext") is not None
