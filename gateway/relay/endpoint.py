"""Where an HTTP upstream listens: its address as the configuration writes it, ready to connect to.

Pure but for `connect`. Knows no connection after it was made.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from gateway.config_tls import ReplicaTls
from gateway.relay.connection import UpstreamConnection
from gateway.tls import for_replicas


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`path` is that of a UNIX socket, empty for TCP. `authority` is what a Host field says;
    `prefix` goes before every request's path."""

    host: str = ""
    port: int = 0
    path: str = ""
    tls: ssl.SSLContext | None = field(default=None, compare=False)
    server_name: str = ""
    authority: bytes = b"localhost"
    prefix: bytes = b""

    @classmethod
    def parse(cls, address: str, tls: ReplicaTls | None = None) -> Endpoint:
        """`http://host:port/prefix`, `https://…` or `unix:/path`. Raises ValueError, and
        BadCertificate where the files of `tls` are none."""
        if address.startswith("unix:"):
            return cls(path=address.removeprefix("unix:"))
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{address!r} is no URL of an HTTP server")
        tls = tls or ReplicaTls()
        secure = parts.scheme == "https"
        return cls(
            host=parts.hostname,
            port=parts.port or (443 if secure else 80),
            tls=for_replicas(tls) if secure else None,
            server_name=tls.server_name or parts.hostname,
            authority=parts.netloc.encode(),
            prefix=parts.path.rstrip("/").encode(),
        )

    def at(self, host: str) -> Endpoint:
        """One address of this host: certificates and Host fields go by the name still."""
        return replace(self, host=host)

    def serving(self, host: str, port: int, target: str) -> Endpoint:
        """One address of a target that serves this service: certificates and Host fields go by the
        target's name, unless another one is configured."""
        fixed = self.server_name if self.server_name != self.host else target
        authority = f"{target}:{port}".encode()
        return replace(self, host=host, port=port, server_name=fixed, authority=authority)

    @property
    def place(self) -> str:
        """host:port of a TCP one, with brackets around IPv6."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"{'http' if self.tls is None else 'https'}://{self.place}{self.prefix.decode()}"

    async def connect(
        self, loop: asyncio.AbstractEventLoop, make: Callable[[], UpstreamConnection]
    ) -> UpstreamConnection:
        """Raises OSError."""
        if self.path:
            _, connection = await loop.create_unix_connection(make, self.path)
        else:
            name = self.server_name if self.tls is not None else None
            _, connection = await loop.create_connection(
                make, self.host, self.port, ssl=self.tls, server_hostname=name
            )
        return connection
