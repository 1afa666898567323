"""One look at an HTTP upstream's health: does it accept, and does it answer its health path well?

Owns the exchange of that look. Uses a connection of its own, so that a server that accepts no more
is found out although old connections still work.
"""

from __future__ import annotations

import asyncio

from gateway.relay.connection import Broke, Headers
from gateway.relay.endpoint import Endpoint
from gateway.relay.memo import Known
from gateway.relay.pool import ConnectionPool, PoolExhausted


async def ask_health(pool: ConnectionPool, endpoint: Endpoint, path: str | None) -> str | None:
    """None when it is well, else what is wrong. Raises OSError and TimeoutError of connecting."""
    try:
        # Closed below, whatever else: a request that got it in between would never be answered.
        connection = await pool.connect(once=True)
    except PoolExhausted:
        return None  # all its connections are at work: it is there
    try:
        if path is None:
            return None
        sink = _Look()
        target = endpoint.prefix + path.encode()
        head = b"GET %b HTTP/1.1\r\nhost: %b\r\nconnection: close\r\n\r\n"
        connection.begin(
            sink, head % (target, endpoint.authority), b"", is_head=False, complete=True
        )
        status = await sink.status
        if 200 <= status < 400:
            return None
        return f"GET {path} answered {status}"
    except ConnectionError as error:
        return f"GET {path}: it {error}"
    finally:
        connection.close()


class _Look:
    """A sink that waits for nothing but the status."""

    def __init__(self) -> None:
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def upstream_head(self, status: int, reason: bytes, headers: Headers) -> None:
        if not self.status.done():
            self.status.set_result(status)

    def upstream_whole(self, known: Known, body: bytes) -> None:
        self.upstream_head(known.status, b"", [])

    def upstream_failed(self, how: Broke, detail: str) -> None:
        if not self.status.done():
            self.status.set_exception(ConnectionError(detail))

    def upstream_interim(self, status: int, headers: Headers) -> None: ...
    def upstream_body(self, chunk: bytes) -> None: ...
    def upstream_read(self) -> None: ...
    def upstream_upgraded(self, early: bytes) -> None: ...
    def upstream_writable(self) -> None: ...
    def upstream_done(self) -> None: ...
