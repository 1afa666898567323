"""Keep-alive connections to one upstream address.

Owns the idle ones, the count of all and the tasks that open more. It never queues: who may send is
decided before, by leases and admission. Invariants: idle + busy ≤ `limit`; a connection is in
nobody's hands twice; who asked to open one hears of it exactly once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from gateway.relay.connection import UpstreamConnection
from gateway.relay.endpoint import Endpoint
from gateway.relay.memo import HeadMemo
from gateway.relay.outbox import Outbox

# An answer to "open one": the connection, or why there is none.
OnOpen = Callable[["UpstreamConnection | OSError | TimeoutError | PoolExhausted"], None]


class PoolExhausted(Exception):
    """As many connections as allowed are busy."""


class ConnectionPool:
    """`connect_s` bounds a handshake."""

    def __init__(
        self,
        endpoint: Endpoint,
        loop: asyncio.AbstractEventLoop,
        *,
        limit: int = 4096,
        idle_limit: int = 256,
        connect_s: float = 2.0,
    ) -> None:
        self._endpoint, self._loop = endpoint, loop
        self._limit, self._idle_limit, self._connect_s = limit, idle_limit, connect_s
        # The newest first: the others age out at the upstream.
        self._idle: deque[UpstreamConnection] = deque()
        self._all: set[UpstreamConnection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._memo, self._outbox = HeadMemo(), Outbox(loop)
        self._opening = 0
        self._closed = False

    @property
    def open(self) -> int:
        return len(self._all)

    def take(self, since: float = 0.0) -> UpstreamConnection | None:
        """A connection that has idled since no longer than `since`, or None: one must be opened."""
        while self._idle:
            if self._idle[-1].idle_since < since:
                return None
            connection = self._idle.pop()
            if not connection.lost:
                return connection
        return None

    def open_one(self, on_open: OnOpen) -> None:
        """Connect beside the loop's other work; `on_open` hears of it, never before this returns.
        Who no longer wants the connection hands it to `put_back`."""

        async def opening() -> None:
            try:
                connection = await self.connect()
            except (OSError, TimeoutError, PoolExhausted) as error:
                on_open(error)
            except asyncio.CancelledError:
                on_open(ConnectionError("this upstream is no longer used"))
                raise
            else:
                on_open(connection)

        task = self._loop.create_task(opening())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def connect(self, *, once: bool = False) -> UpstreamConnection:
        """A new connection. `once`: its one exchange is its caller's; nobody gets it after that.
        Raises OSError or TimeoutError (the upstream), PoolExhausted (ours)."""
        if self._closed:
            raise ConnectionError("this upstream is no longer used")
        if len(self._all) + self._opening >= self._limit:
            raise PoolExhausted(f"{self._limit} connections to {self._endpoint} are busy")
        self._opening += 1
        on_idle = UpstreamConnection.close if once else self.put_back
        try:
            async with asyncio.timeout(self._connect_s):
                connection = await self._endpoint.connect(
                    self._loop,
                    lambda: UpstreamConnection(on_idle, self._lost, self._memo, self._outbox),
                )
        finally:
            self._opening -= 1
        if connection.lost:
            raise ConnectionError("it closed the connection at once")
        self._all.add(connection)
        if self._closed:
            connection.close()
            raise ConnectionError("this upstream is no longer used")
        return connection

    def put_back(self, connection: UpstreamConnection) -> None:
        """It has nothing to do and may carry the next exchange."""
        if self._closed or len(self._idle) >= self._idle_limit:
            connection.close()
        elif not connection.lost:
            connection.idle_since = self._loop.time()
            self._idle.append(connection)

    def retire(self) -> None:
        """Take no more exchanges; those under way go on."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    async def close(self) -> None:
        """Close all; an exchange under way hears that its connection failed."""
        self.retire()
        for connection in list(self._all):
            connection.cut()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _lost(self, connection: UpstreamConnection) -> None:
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
