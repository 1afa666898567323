"""The application's protocol as a guest on one of the lane's connections.

Gives aiohttp the bytes of exactly one request, from its first, and then the connection goes back to
the lane, so that requests for both may share it; an upgraded connection stays with aiohttp. Never
looks into what the application writes. Invariant: each byte goes to one side, in order.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from gateway.lane.chunked import ChunkedDecoder
from gateway.lane.framing import CHUNKED, Framing
from gateway.lane.refusal import Refused
from gateway.lane.timeouts import Pace

if TYPE_CHECKING:
    from gateway.lane.connection import Connection

# A request that came before the last was answered waits for the application to come to rest.
# aiohttp does not say when, so it is asked; only clients that pipeline behind it wait this long.
FIRST_LOOK_S, LONGEST_LOOK_S = 0.001, 0.05


def rests(app: Any) -> bool:
    """Whether an aiohttp handler waits for its next request: its own test for idleness."""
    waiter = getattr(app, "_waiter", None)
    return waiter is not None and not waiter.done()


class RequestSpan:
    """Finds the end of one request in raw bytes."""

    __slots__ = ("_chunks", "_left", "done")

    def __init__(self, framing: Framing, head_bytes: int, max_trailers: int) -> None:
        self._left = head_bytes + max(framing.length, 0)
        self._chunks = ChunkedDecoder(max_trailers) if framing.length == CHUNKED else None
        self.done = False

    def feed(self, data: bytes) -> int:
        """How many bytes of `data` belong to the request; raises Refused on broken chunks."""
        at = min(self._left, len(data))
        self._left -= at
        if self._left == 0:
            if self._chunks is not None:
                at = self._chunks.feed(data, at, [])
            self.done = self._chunks is None or self._chunks.done
        return at


class Guest(asyncio.Protocol):
    """Stands between the transport and `app` while the application has the connection."""

    __slots__ = ("_app", "_conn", "_connected", "_delay", "_pace", "_rest", "_span", "_timer")

    def __init__(self, conn: Connection, app: asyncio.Protocol) -> None:
        self._conn, self._app = conn, app
        self._connected = False
        self._span: RequestSpan | None = None  # None: all that comes is the application's
        self._pace = Pace(0.0)
        self._rest = b""  # came behind the request
        self._delay = FIRST_LOOK_S
        self._timer: asyncio.TimerHandle | None = None

    def take(self, framing: Framing, data: bytes, head_bytes: int) -> None:
        """`data` begins with a request, whose head is `head_bytes` long."""
        conn = self._conn
        conn.transport.set_protocol(self)
        if not self._connected:
            self._connected = True
            self._app.connection_made(conn.transport)
        comes_back = not framing.upgrade and hasattr(self._app, "_waiter")
        limit = conn.lane.limits.max_head
        self._span = RequestSpan(framing, head_bytes, limit) if comes_back else None
        self._pace = Pace(conn.lane.clock())
        self.data_received(data)

    # ------------------------------------------------------------------------- the socket's events

    def data_received(self, data: bytes) -> None:
        self._pace.received += len(data)
        span = self._span
        if span is None:
            self._app.data_received(data)
            return
        if not span.done:
            try:
                size = span.feed(data)
            except Refused:
                self._span = None  # the application finds the same and closes
                size = len(data)
            self._app.data_received(data if size == len(data) else data[:size])
            data = data[size:]
        if not data and not self._conn.is_half_closed:
            return
        self._rest += data
        if not self._give_back():
            self._conn.transport.pause_reading()
            self._look_later()

    def eof_received(self) -> bool | None:
        return self._app.eof_received()

    def pause_writing(self) -> None:
        self._conn.note_writing(paused=True)
        self._app.pause_writing()

    def resume_writing(self) -> None:
        self._conn.note_writing(paused=False)
        self._app.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._conn.connection_lost(exc)

    def lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._app.connection_lost(exc)

    # ------------------------------------------------------------------------------------ the lane

    def _give_back(self) -> bool:
        """Return the connection with what has come since, if the application is at rest."""
        if self._span is None or not self._span.done or not rests(self._app):
            return False
        if self._conn.is_unread:
            return False  # the application would never hear that writing goes on
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        keep_alive = getattr(self._app, "keep_alive", None)
        if keep_alive is not None:
            keep_alive(True)  # stops its timer for idle connections: this one may be busy with us
        if self._rest:
            self._conn.transport.resume_reading()
        rest, self._rest = self._rest, b""
        self._delay = FIRST_LOOK_S
        self._conn.take_back(rest)
        return True

    def _look_later(self) -> None:
        if self._timer is None:
            self._timer = self._conn.lane.loop.call_later(self._delay, self._look)
            self._delay = min(2 * self._delay, LONGEST_LOOK_S)

    def _look(self) -> None:
        self._timer = None
        if self._conn.is_closed:
            return
        if not self._give_back():
            self._look_later()

    def drain(self) -> None:
        """Finish the request in progress; an upgraded connection is the application's to end."""
        if self._give_back() or self._span is None:
            return
        close = getattr(self._app, "close", None)
        if close is not None and self._span.done:
            close()

    def sweep(self, now: float) -> None:
        """Idle connections go back to the lane, which times them; slow bodies are cut off."""
        if self._span is None or self._give_back():
            return
        if self._span.done:
            self._pace.restart(now)
        elif self._pace.is_slow(now, self._conn.lane.limits):
            self._conn.time_out(abort=True)
