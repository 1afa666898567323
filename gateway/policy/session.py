"""Which session a request belongs to: the first of the configured sources that it has.

Sources are written `header:NAME`, `cookie:NAME`, `query:NAME` or `body:FIELD`. Never a source: who
the client is to the network or to us (an address, a credential), for then one tenant, or one office
behind one proxy, would be one session on one replica. Keys are bounded in length; no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any
from urllib.parse import unquote_plus

DEFAULT_SOURCES = (
    "header:x-session-id",
    "cookie:session",
    "query:session",
    "body:prompt_cache_key",
    "body:user",
    "body:conversation",
)
_LONGEST = 128  # characters of a key kept as they are; longer ones by their digest
_FORBIDDEN = frozenset(
    {
        "authorization",
        "proxy-authorization",
        "x-api-key",
        "api-key",
        "forwarded",
        "x-forwarded-for",
        "x-real-ip",
        "x-client-ip",
        "true-client-ip",
        "cf-connecting-ip",
    }
)


class SessionSources:
    """`needs_body`: whether a body, where there is one, has to be parsed to know the session."""

    def __init__(self, sources: Sequence[str] = DEFAULT_SOURCES) -> None:
        self._sources: list[tuple[str, str]] = []
        for source in sources:
            kind, _, name = source.partition(":")
            if kind not in ("header", "cookie", "query", "body") or not name:
                raise ValueError(
                    f"a session source is header:NAME, cookie:NAME, query:NAME or body:FIELD, "
                    f"not {source!r}"
                )
            if kind == "header":
                name = name.lower()
                if name in _FORBIDDEN or name == "cookie":
                    raise ValueError(
                        f"{source!r} cannot name a session: it says who the client is; "
                        f"use a header of its own, such as header:x-session-id"
                    )
            self._sources.append((kind, name))
        self.needs_body = any(kind == "body" for kind, _ in self._sources)

    def key(
        self,
        header: Callable[[bytes], bytes | None],
        query: str = "",
        body: Mapping[str, Any] | None = None,
    ) -> str | None:
        """The session's key, or None. `header` gives a header's first value by its lower-case
        name; `query` is the part of the target after `?`; `body` the parsed JSON object."""
        for kind, name in self._sources:
            if kind == "header":
                value = _text(header(name.encode("latin-1")))
            elif kind == "cookie":
                value = _cookie(_text(header(b"cookie")), name)
            elif kind == "query":
                value = _parameter(query, name)
            else:
                value = _field(body, name)
            if value:
                return _bounded(f"{kind}:{name}={value}")
        return None


def _text(value: bytes | None) -> str:
    return value.decode("latin-1").strip() if value else ""


def _cookie(header: str, name: str) -> str:
    for part in header.split(";"):
        found, _, value = part.strip().partition("=")
        if found == name:
            return value.strip('"')
    return ""


def _parameter(query: str, name: str) -> str:
    if name not in query and "%" not in query:
        return ""
    for part in query.split("&"):
        found, _, value = part.partition("=")
        if unquote_plus(found) == name:
            return unquote_plus(value)
    return ""


def _field(body: Mapping[str, Any] | None, name: str) -> str:
    """A string or whole number; OpenAI's `conversation` is an id or an object that has one."""
    value = body.get(name) if body else None
    if isinstance(value, Mapping):
        value = value.get("id")
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() <= 64:
        return str(value)
    return ""


def _bounded(key: str) -> str:
    if len(key) <= _LONGEST:
        return key
    return blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
