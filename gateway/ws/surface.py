"""The surface `/ws`: the lane's handler for it, and what all sockets of a worker share.

Owns the set of open sockets, their one timer, their limits and counters, and their drain. It sits
on the lane's tunnels and needs no aiohttp: an idle socket has no task, no buffer and no timer.
Invariant: `held` is the sum of all bytes that the sockets keep.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping

from gateway.errors import BadRequest, GatewayError, MethodNotAllowed
from gateway.lane import Exchange, Handler
from gateway.oip import Directory
from gateway.oip.reply import refuse
from gateway.oip.terms import read_terms
from gateway.ws.desk import Desk
from gateway.ws.errors import GoingAway, UpgradeRequired
from gateway.ws.handshake import REQUIRED, accept
from gateway.ws.limits import SocketLimits, SocketStats
from gateway.ws.socket import Socket
from gateway.ws.stream import Opener

log = logging.getLogger(__name__)

PATH = "/ws"
PERIOD_S = 1.0
# Sockets looked at in one go: some 100 µs.
SLICE = 500
# Kept of a drain's grace for the close frames: at most a second, at most a quarter.
CLOSING_S, CLOSING_SHARE = 1.0, 0.25


class WebSocketSurface:
    """`streams`: by message type, who opens an answer that is streamed. `origins`: whose pages may
    connect beside this server's and this machine's, as browsers say it ("https://app.example")."""

    streams = True  # called at the head: what follows it is no HTTP

    def __init__(
        self,
        directory: Directory,
        limits: SocketLimits | None = None,
        *,
        streams: Mapping[str, Opener] | None = None,
        origins: Collection[str] = (),
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.limits = limits or SocketLimits()
        self.loop = asyncio.get_running_loop()
        self.clock = clock or self.loop.time
        self.desk = Desk(directory, dict(streams or {}))
        self.stats = SocketStats()
        self.held = 0
        self.draining = False
        self._origins = frozenset(origins)
        self._sockets: set[Socket] = set()
        self._all_gone = asyncio.Event()
        self._timer: asyncio.Handle | None = None

    def resolve(self, method: str, path: str) -> Handler | None:
        """The lane's question."""
        return self if path == PATH else None

    def __call__(self, exchange: Exchange) -> None:
        try:
            fields = self._accept(exchange)
            terms = read_terms(exchange.headers)
        except GatewayError as error:
            self.stats.refused += 1
            refuse(exchange, error, REQUIRED if isinstance(error, UpgradeRequired) else b"")
            return
        socket = Socket(self, exchange, terms)
        self._sockets.add(socket)
        self.stats.opened += 1
        self.stats.open += 1
        if self._timer is None:
            self._timer = self.loop.call_later(PERIOD_S, self._tick)
        socket.open(fields)

    def _accept(self, exchange: Exchange) -> bytes:
        """Header lines for the 101. Raises GatewayError."""
        if exchange.method != "GET":
            raise MethodNotAllowed(f"{PATH} takes GET", allow="GET")
        framing = exchange.head.framing
        if not framing.upgrade or framing.minor != 1:
            raise UpgradeRequired("this path speaks WebSocket; upgrade the connection")
        if framing.length:
            raise BadRequest("a handshake has no body", param="content-length")
        if self.draining:
            raise GoingAway("the server is going down")
        if len(self._sockets) >= self.limits.max_sockets:
            raise GoingAway("too many WebSockets are open here")
        return accept(exchange.headers, self._origins)

    def forget(self, socket: Socket) -> bool:
        """False when that was done before."""
        if socket not in self._sockets:
            return False
        self._sockets.discard(socket)
        self.stats.open -= 1
        if not self._sockets:
            self._all_gone.set()
        return True

    # ------------------------------------------------------------------------------ now and then

    def sweep(self, now: float) -> None:
        """Look at every socket's time limits once."""
        for socket in list(self._sockets):
            socket.sweep(now)

    def _tick(self) -> None:
        self._sweep_on(list(self._sockets))

    def _sweep_on(self, rest: list[Socket]) -> None:
        """A slice at a time, so that many sockets hold no request up."""
        now = self.clock()
        for socket in rest[-SLICE:]:
            socket.sweep(now)
        del rest[-SLICE:]
        if rest:
            self._timer = self.loop.call_soon(self._sweep_on, rest)
        elif self._sockets:
            self._timer = self.loop.call_later(PERIOD_S, self._tick)
        else:
            self._timer = None  # the next socket starts it again

    # ----------------------------------------------------------------------------------- the end

    async def drain(self, grace_s: float) -> None:
        """Take no more requests, close each socket with 1001 once its own have ended, and all that
        are left shortly before `grace_s` seconds are over. Returns when no socket is open."""
        self.draining = True
        for socket in list(self._sockets):
            socket.drain()
        reserve = min(CLOSING_S, grace_s * CLOSING_SHARE)
        if not await self._gone_within(grace_s - reserve):
            for socket in list(self._sockets):
                socket.cut()
            if not await self._gone_within(reserve):
                self.close()

    async def _gone_within(self, seconds: float) -> bool:
        if not self._sockets:
            return True
        self._all_gone.clear()
        try:
            await asyncio.wait_for(self._all_gone.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Break off whatever is left."""
        for socket in list(self._sockets):
            socket.abort()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
