"""The answering half of a connection: whose turn it is to write, and how the connection ends.

Owns the queue of exchanges, the socket's flow control and the ways of closing; requests are read
in `connection`. Invariant: `front` is the exchange whose turn it is, answers leave in the order of
their requests, and every exchange that a handler was given ends by its own end() or abort(), or by
one on_gone.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING

from backends.wire import Buffer
from gateway.lane.body import Body, Tunnel
from gateway.lane.exchange import ENDED, OPEN, STARTED, Exchange
from gateway.lane.response import CONTINUE
from gateway.lane.timeouts import Outflow

if TYPE_CHECKING:
    from gateway.lane.lane import Lane

# Why nothing is read: the client does not take its answers; too many requests are in flight; the
# handler has paused a body; the next bytes are for the application, or perhaps for a tunnel, and
# answers are due before.
UNREAD, FULL, PAUSED, TURN = 1, 2, 4, 8
HOLD = UNREAD | FULL | PAUSED | TURN
# Further: inside _pump(); an unfinished head waits; the client has shut its side; drain() was
# called; no more requests are taken; the client may still be sending; the last answer is out and
# the client's end is awaited; close() was called; the application has the connection; within
# resume_writing().
PUMPING, PARTIAL, EOF, DRAINING = 16, 32, 64, 128
DEAF, MORE, SHUT, CLOSED, AWAY, RESUMING = 256, 512, 1024, 2048, 4096, 8192
# An answer may be out before its request's body is in: so much is read on to keep the connection.
WORTH_READING = 64 * 1024


def reset_on_close(transport: asyncio.Transport) -> None:
    """A body that ends with the connection looks cut off only if that is reset."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Turns(asyncio.Protocol):
    __slots__ = (
        "_behind",
        "_body",
        "_dropped",
        "_flags",
        "_input",
        "_outflow",
        "_peer",
        "_taken",
        "front",
        "lane",
        "since",
        "transport",
    )

    transport: asyncio.Transport  # from connection_made on

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.front: Exchange | None = None
        self.since = 0.0  # what for depends on the state: see sweep()
        self._behind: deque[Exchange] | None = None
        self._body: Body | None = None
        self._input: bytes | None = None  # read, and taken only up to `_taken`
        self._taken = 0
        self._flags = 0
        self._dropped = 0  # bytes read for nothing while lingering
        self._outflow: Outflow | None = None
        self._peer: str | None = None

    # ------------------------------------------------------------------------------ for exchanges

    @property
    def peer(self) -> str:
        if self._peer is None:
            name = self.transport.get_extra_info("peername")
            self._peer = str(name[0]) if isinstance(name, tuple) and name else ""
        return self._peer

    @property
    def tls(self) -> bool:
        return self.transport.get_extra_info("sslcontext") is not None

    @property
    def is_closed(self) -> bool:
        return bool(self._flags & CLOSED)

    @property
    def is_half_closed(self) -> bool:
        return bool(self._flags & EOF)

    @property
    def is_unread(self) -> bool:
        return bool(self._flags & UNREAD)

    def put(self, data: Buffer) -> None:
        try:
            self.transport.write(data)
        except RuntimeError:
            self.note_broken()

    def note_broken(self) -> None:
        """uvloop refuses to write once an error has closed a transport; connection_lost() comes."""
        self._flags |= CLOSED

    def send(self, exchange: Exchange, data: Buffer) -> bool:
        """False: the client is slow, or it is not this exchange's turn."""
        if exchange is self.front:
            self.put(data)
            return not self._flags & UNREAD
        if exchange.held is None:
            exchange.held = []
        exchange.held.append(data)
        return False

    def answering_whole(self, exchange: Exchange) -> None:
        """All of the answer comes now: if its request has not, is the connection worth keeping?"""
        body = self._body
        if body is not None and body.exchange is exchange:
            exchange.last = exchange.last or not body.is_worth_reading(WORTH_READING)

    def is_last(self, exchange: Exchange) -> bool:
        """Whether the lane drains and this is the newest request: no more are taken then."""
        newest = self._behind[-1] if self._behind else self.front
        if not self._flags & DRAINING or exchange is not newest:
            return False
        self._flags |= DEAF
        return True

    def begin_tunnel(self, exchange: Exchange, head: bytes) -> None:
        """After 101 what comes is no HTTP any more; it goes to `exchange` as it is."""
        if not exchange.head.framing.upgrade or self._body is not None:
            raise RuntimeError("101 answers a request to upgrade, after its body")
        framing = exchange.head.framing
        self._body = Tunnel(exchange, None, framing, self.lane, self.lane.clock())
        exchange.phase, exchange.simple, exchange.last = STARTED, False, True
        self.send(exchange, head)
        self._release(TURN)

    def finished(self, exchange: Exchange) -> None:
        """It has written its last byte: let the next one write."""
        body = self._body
        if body is not None and body.exchange is exchange:
            exchange.last = exchange.last or not body.is_worth_reading(WORTH_READING)
            body.exchange = None
            if exchange.last:
                self._flags |= DEAF
            self._release(PAUSED)
        if exchange is not self.front:
            return
        while self.front is not None and self.front.phase == ENDED:
            if self.front.last:
                self._shut()
                return
            self.front = self._behind.popleft() if self._behind else None
            self._turn()
        self._release(FULL if self.front is not None else FULL | TURN)
        if self._body is None:
            self._simplify()
        self._settle()

    def _simplify(self) -> None:
        """If the front is alone and its request is here, a plain answer may take the short way."""
        front = self.front
        if front is not None and not self._behind and not self._flags & ~(PUMPING | PARTIAL):
            front.simple = front.phase == OPEN and front.head.framing.simple

    def _turn(self) -> None:
        """What the new front has written while it waited goes out now."""
        front = self.front
        if front is None:
            return
        held, front.held = front.held, None
        for data in held or ():
            self.put(data)
        self._invite()
        if front.phase != ENDED and not self._flags & UNREAD:
            front.pass_writable()

    def _invite(self) -> None:
        """100 (Continue), if the client waits for it and the body is wanted now."""
        body = self._body
        if (
            body is not None
            and body.uninvited
            and not self._flags & (PAUSED | DEAF)
            and body.exchange is self.front is not None
            and self.front.phase == OPEN
        ):
            body.uninvited = False
            self.put(CONTINUE)

    def _end_body(self) -> None:
        body, self._body = self._body, None
        if body is not None:
            body.release()

    def abandon(self, exchange: Exchange) -> None:
        """Break the connection off; the answers before this exchange's still go out."""
        cut = exchange.ends_with_connection
        exchange.forget()
        exchange.last = True
        self._flags |= DEAF
        if exchange is self.front:
            self._drop_exchanges()
            if cut:
                reset_on_close(self.transport)
            self._close(abort=cut)

    # ------------------------------------------------------------------------------- flow control

    def pause_writing(self) -> None:
        self._hold(UNREAD)

    def resume_writing(self) -> None:
        self._flags = self._flags & ~UNREAD | RESUMING
        if self.front is not None:
            self.front.pass_writable()
        self._flags &= ~RESUMING
        if not self._flags & HOLD:
            self._resume()

    def pause_body(self, exchange: Exchange) -> None:
        if self._body is not None and self._body.exchange is exchange:
            self._hold(PAUSED)

    def resume_body(self, exchange: Exchange) -> None:
        self._release(PAUSED)
        self._invite()

    def _hold(self, why: int) -> None:
        if not self._flags & HOLD:
            self.transport.pause_reading()
        self._flags |= why

    def _release(self, why: int) -> None:
        if self._flags & why:
            self._flags &= ~why
            if not self._flags & HOLD:
                self._resume()

    def _resume(self) -> None:
        """Nothing holds the reading any more."""
        if not self._flags & CLOSED:
            self.transport.resume_reading()

    # ------------------------------------------------------------------------------------ the end

    def _settle(self) -> None:
        """Close when nothing is in flight and nothing more can or may come."""
        unfinished = 0 if self._flags & EOF else PARTIAL  # no end of it will ever come
        held = self._input is not None and not self._flags & PARTIAL
        busy = PUMPING | CLOSED | SHUT | AWAY | unfinished
        if self.front is not None or self._body is not None or self._flags & busy:
            return
        if self._flags & (DRAINING | DEAF) or (self._flags & EOF and not held):
            self._shut()

    def _shut(self) -> None:
        """The last answer is written. What the client still sends is read and dropped for a while:
        closing with bytes unread would reset the connection, and the answer with it."""
        if self._flags & (CLOSED | SHUT):
            return
        unread = self._flags & MORE or self._body is not None or self._input is not None
        self._drop_exchanges()
        self._end_body()
        self._input = None
        if not unread or self._flags & EOF or not self.transport.can_write_eof():
            self._close()
            return
        self._flags |= DEAF | SHUT
        self.since = self.lane.clock()
        try:
            self.transport.write_eof()
        except (OSError, RuntimeError):
            self._close()  # the client has reset the connection
        self._release(HOLD & ~UNREAD)

    def _close(self, *, abort: bool = False) -> None:
        self._flags |= CLOSED | DEAF
        close = self.transport.abort if abort else self.transport.close
        if self._flags & RESUMING:
            # asyncio loses count of its close() if that comes in the middle of its own writing.
            self.lane.loop.call_soon(close)
        else:
            close()

    def _drop_exchanges(self) -> None:
        """Nobody will read what these would answer."""
        front, behind = self.front, self._behind
        self.front = self._behind = None
        for exchange in (front, *(behind or ())):
            if exchange is not None and exchange.phase != ENDED:
                self.lane.stats.gone += 1
                exchange.pass_gone()
                exchange.forget()
