"""Keep-alive connections to one upstream address.

Owns the idle ones and the count of all. It never queues: who may send is decided before, by leases
and admission. Invariant: idle + busy ≤ `limit`, and a connection is in nobody's hands twice.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque

from gateway.relay.connection import UpstreamConnection


class PoolExhausted(Exception):
    """As many connections as allowed are busy."""


class ConnectionPool:
    """`address`: (host, port), or a path for a UNIX socket. `connect_s` bounds a handshake."""

    def __init__(
        self,
        address: tuple[str, int] | str,
        *,
        tls: ssl.SSLContext | None = None,
        limit: int = 4096,
        idle_limit: int = 256,
        connect_s: float = 2.0,
    ) -> None:
        self._address, self._tls = address, tls
        self._limit, self._idle_limit, self._connect_s = limit, idle_limit, connect_s
        # The newest first: the others age out at the upstream.
        self._idle: deque[UpstreamConnection] = deque()
        self._all: set[UpstreamConnection] = set()
        self._opening = 0
        self._closed = False

    @property
    def open(self) -> int:
        return len(self._all)

    def take(self) -> UpstreamConnection | None:
        """An idle connection, or None when one must be opened."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.lost:
                return connection
        return None

    async def connect(self) -> UpstreamConnection:
        """A new connection. Raises OSError or TimeoutError (the upstream), PoolExhausted (ours)."""
        if len(self._all) + self._opening >= self._limit:
            raise PoolExhausted(f"{self._limit} connections to {self._address} are busy")
        self._opening += 1
        try:
            async with asyncio.timeout(self._connect_s):
                connection = await self._open()
        finally:
            self._opening -= 1
        self._all.add(connection)
        return connection

    async def _open(self) -> UpstreamConnection:
        loop = asyncio.get_running_loop()

        def make() -> UpstreamConnection:
            return UpstreamConnection(self._idled, self._lost)

        if isinstance(self._address, str):
            _, connection = await loop.create_unix_connection(make, self._address)
        else:
            host, port = self._address
            _, connection = await loop.create_connection(make, host, port, ssl=self._tls)
        return connection

    def close(self) -> None:
        """Close all; an exchange under way hears that its connection failed."""
        self._closed = True
        for connection in list(self._all):
            connection.close()
        self._idle.clear()

    def _idled(self, connection: UpstreamConnection) -> None:
        if self._closed or len(self._idle) >= self._idle_limit:
            connection.close()
        else:
            self._idle.append(connection)

    def _lost(self, connection: UpstreamConnection) -> None:
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
