"""The keys of the gateway itself: its listeners, its processes, what a connection may cost.

Owns these keys, their defaults and their meaning, as `config` does the others.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from gateway.config_options import Choice, Number, Size, Text, Texts, Whole, option
from gateway.config_replica import DAY, HOST
from gateway.config_source import table
from gateway.config_tls import ListenTls

_LISTEN = re.compile(rf"unix:(?P<path>/.+)|(?P<host>{HOST}):(?P<port>\d{{1,5}})")


def split_listen(listen: str) -> tuple[str, int] | str:
    """(host, port), or the path of a UNIX socket. Raises ValueError."""
    match = _LISTEN.fullmatch(listen)
    if match is None:
        raise ValueError(f"{listen!r} is no address")
    if match["path"] is not None:
        return match["path"]
    port = int(match["port"])
    if port > 65_535:
        raise ValueError(f"port {port} is above 65535")
    return match["host"].strip("[]"), port


def _listens(text: str) -> bool:
    try:
        split_listen(text)
    except ValueError:
        return False
    return True


ADDRESS = Text('an address: "127.0.0.1:8080", "[::1]:8080" or "unix:/path"', valid=_listens)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Listeners, processes and what a connection may cost."""

    listen: str = option(ADDRESS, "where clients connect", default="127.0.0.1:8080")
    admin: str = option(ADDRESS, "where operators connect", default="127.0.0.1:8081")
    admin_key: str | None = option(
        Text(pattern=r"[\x21-\x7e]{8,}", expected="at least 8 printable characters"),
        "operators must send it: `authorization: Bearer KEY`",
        default=None,
    )
    admin_key_sha256: str | None = option(
        Text("SHA-256 of the operators' key in hexadecimal", r"[0-9a-f]{64}"),
        "instead of admin_key, so that the file holds no secret",
        default=None,
    )
    tls: ListenTls = table(ListenTls)  # noqa: RUF009 - a field
    admin_tls: ListenTls = table(ListenTls)  # noqa: RUF009 - a field
    workers: int = option(Whole(1, 256), "gateway processes that share the port", default=1)
    max_body: int = option(Size(), "the largest request body", default=64 * 2**20)
    max_head: int = option(Size(), "the largest request line and headers", default=32 * 2**10)
    head_timeout_s: float = option(
        Number(above=0.0, most=DAY), "a head must be complete within", default=10.0
    )
    body_timeout_s: float = option(
        Number(above=0.0, most=DAY), "a body may stall for", default=30.0
    )
    idle_timeout_s: float = option(
        Number(above=0.0, most=DAY), "a connection may idle for", default=120.0
    )
    origins: tuple[str, ...] | None = option(
        Texts('origins such as "https://app.example.com"', r"https?://[^/\s]+"),
        "whose pages may open /ws, beside our own and those of this host",
        default=None,
    )
    drain_s: float = option(
        Number(least=0.0, most=DAY), "requests may finish for so long at a stop", default=20.0
    )
    watch_s: float | None = option(
        Number(least=0.01, most=DAY),
        "this file, and those of replicas, are looked at so often, and read again when one has "
        "changed; left out, a SIGHUP or an operator says so",
        default=None,
    )
    log_level: str = option(
        Choice("debug", "info", "warning", "error"), "what is logged", default="info"
    )

    @property
    def admin_digest(self) -> str | None:
        """SHA-256 of the operators' key in hexadecimal; None where they need none."""
        if self.admin_key is not None:
            return hashlib.sha256(self.admin_key.encode()).hexdigest()
        return self.admin_key_sha256

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.listen == self.admin and not self.listen.endswith(":0"):
            yield "admin", f'"{self.admin}" is "listen" too; operators need an address of their own'
        if self.admin_key and self.admin_key_sha256:
            yield "admin_key_sha256", "give admin_key or its hash, not both"
