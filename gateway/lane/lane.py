"""The fast lane of one worker: makes the connections, keeps their time, drains them.

Owns what connections share: limits, the memo of heads, rendered response heads, the counters and
the one coarse sweep that stands in for timers. It never looks into a request itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.lane.connection import Connection
from gateway.lane.exchange import Handler
from gateway.lane.head import HeadReader
from gateway.lane.limits import LaneStats, Limits
from gateway.lane.pattern import RequestHead
from gateway.lane.response import Prefixes

# Connections looked at in one go: some 100 µs.
SLICE = 1000

# How long a drain waits for requests that were sent before their senders could know of it.
IDLE_GRACE_S = 0.05

Resolve = Callable[[str, str], Handler | None]
HandOver = Callable[[], asyncio.Protocol]
Guard = Callable[[RequestHead, Handler | None], Handler | None]


class Lane:
    """`resolve(method, path)`: who answers; None hands the connection to a protocol made by
    `hand_over` (an aiohttp `web.Server`), or is 404 without one. `guard(head, handler)`, where one
    is set, has the last word on who answers. `clock` is the loop's time."""

    def __init__(
        self,
        resolve: Resolve,
        hand_over: HandOver | None = None,
        limits: Limits | None = None,
        *,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.resolve, self.hand_over = resolve, hand_over
        self.guard: Guard | None = None
        self.limits = limits or Limits()
        self.loop = asyncio.get_running_loop()
        self.clock = clock or self.loop.time
        self.heads = HeadReader(self.limits)
        self.prefixes = Prefixes()
        self.stats = LaneStats()
        self.gathered = 0  # bytes of bodies that are not whole yet
        self._connections: set[Connection] = set()
        self._draining = False
        self._all_closed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        shortest = min(
            self.limits.head_timeout_s,
            self.limits.body_timeout_s,
            self.limits.idle_timeout_s,
            self.limits.write_timeout_s,
            self.limits.linger_s,
        )
        # The Date of answers is renewed with the sweep, hence at least once a second.
        self._period = min(1.0, shortest / 4)

    def protocol(self) -> asyncio.Protocol:
        """For `loop.create_server(lane.protocol, ...)`."""
        return Connection(self)

    def opened(self, connection: Connection) -> None:
        self.stats.accepted += 1
        self.stats.open += 1
        connection.since = self.clock()
        self._connections.add(connection)
        if self._draining:
            connection.drain()
            self.loop.call_later(IDLE_GRACE_S, connection.close_if_idle)
        if self._timer is None:
            self.prefixes.tick()
            self._timer = self.loop.call_later(self._period, self._tick)

    def closed(self, connection: Connection) -> None:
        self.stats.open -= 1
        self._connections.discard(connection)
        if not self._connections:
            self._all_closed.set()

    def sweep(self, now: float) -> None:
        """Look at every connection's time limits once."""
        for connection in list(self._connections):
            connection.sweep(now)

    def _tick(self) -> None:
        self.prefixes.tick()
        self._sweep_on(list(self._connections))

    def _sweep_on(self, rest: list[Connection]) -> None:
        """A slice at a time, so that many connections hold no request up."""
        now = self.clock()
        for connection in rest[-SLICE:]:
            connection.sweep(now)
        del rest[-SLICE:]
        if rest:
            self.loop.call_soon(self._sweep_on, rest)
        elif self._connections:
            self._timer = self.loop.call_later(self._period, self._tick)
        else:
            self._timer = None  # nothing to time; the next connection starts it again

    async def drain(self, grace_s: float) -> None:
        """Answer what is in flight with `connection: close`, close idle connections, and cut off
        what is left after `grace_s` seconds. Returns when every connection is gone. Stop listening
        before."""
        end = self.loop.time() + grace_s
        self._draining = True
        for connection in list(self._connections):
            connection.drain()
        # Requests may be on their way on connections that look idle: they are answered, too.
        await asyncio.sleep(min(IDLE_GRACE_S, grace_s / 2))
        for connection in list(self._connections):
            connection.close_if_idle()
        if self._connections:
            self._all_closed.clear()
            try:
                await asyncio.wait_for(self._all_closed.wait(), max(0.0, end - self.loop.time()))
            except TimeoutError:
                for connection in list(self._connections):
                    connection.transport.abort()
                await self._all_closed.wait()
