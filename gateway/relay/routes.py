"""Which route a path and a host belong to: the longest path, and of those the one for that host.

Pure. Invariant: a route's path matches itself and what lies below it, never a longer word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar
from urllib.parse import unquote

from gateway.config import RouteConfig

T = TypeVar("T")
_SLASHES = re.compile("/+")

# What the gateway says itself, whatever routes cover it. A route to exactly that path wins.
OWN = ("/v1", "/v2", "/ws", "/healthz", "/readyz", "/metrics", "/status.json")


class RouteTable(Generic[T]):
    """`entries`: routes and what they stand for."""

    def __init__(self, entries: Iterable[tuple[RouteConfig, T]] = ()) -> None:
        self._by_path: dict[str, list[tuple[str, T]]] = {}
        for route, value in sorted(entries, key=lambda entry: -len(entry[0].host or "")):
            self._by_path.setdefault(route.path, []).append((route.place[1], value))
        self._paths: Sequence[str] = sorted(self._by_path, key=len, reverse=True)

    def covers(self, path: str) -> bool:
        """Whether some route, of any host, has the path, and no word of the gateway's own is
        nearer to it."""
        for prefix in self._paths:
            if _below(path, prefix):
                return not any(len(own) > len(prefix) and _below(path, own) for own in OWN)
        return False

    def find(self, path: str, host: bytes | None) -> T | None:
        """None, too, for a path that a server may take for one of another route."""
        found = self._nearest(path, host)
        if "%" in path or "//" in path:
            plain = _SLASHES.sub("/", unquote(path))
            if self._nearest(plain, host) is not found:
                return None
        return found

    def _nearest(self, path: str, host: bytes | None) -> T | None:
        name = _host_name(host)
        for prefix in self._paths:
            if _below(path, prefix):
                for wanted, value in self._by_path[prefix]:
                    if not wanted or wanted == name:
                        return value
        return None


def _below(path: str, prefix: str) -> bool:
    return prefix == "/" or path == prefix or (path.startswith(prefix) and path[len(prefix)] == "/")


def _host_name(host: bytes | None) -> str:
    """Without the port."""
    text = (host or b"").decode("latin-1").lower()
    if text.startswith("["):
        return text.partition("]")[0] + "]"
    return text.partition(":")[0]
