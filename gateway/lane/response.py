"""Response heads, rendered with as little work as can be.

`field` is the one place where foreign text becomes a header line, and the place that refuses to
let it become two. Heads for a status and content type are kept with the current Date for a second.
"""

from __future__ import annotations

import re
import time
from email.utils import formatdate
from http import HTTPStatus

import orjson

_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_UNSAFE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")

CLOSE = b"connection: close\r\n"
KEEP_ALIVE = b"connection: keep-alive\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

# Content types come from upstreams too: the table must not grow with what they invent.
MAX_PREFIXES = 256


def field(name: bytes, value: bytes | str) -> bytes:
    """One header line. Raises ValueError for what would break out of the line."""
    if isinstance(value, str):
        value = value.encode("utf-8", "strict")
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"{name!r} is no header name")
    if _UNSAFE.search(value) is not None:
        raise ValueError(f"the value of header {name.decode()} contains a control character")
    return b"%b: %b\r\n" % (name, value)


def error_body(message: str) -> bytes:
    return orjson.dumps({"error": message})


def status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    return b"HTTP/1.1 %d %b\r\n" % (status, phrase.encode())


class Prefixes:
    """Status line, Date and Content-Type, by (status, content type). `sized` has the same up to
    the number of a Content-Length. `tick` drops them when the second has changed."""

    __slots__ = ("_second", "_table", "sized")

    def __init__(self) -> None:
        self._table: dict[tuple[int, bytes], bytes] = {}
        self.sized: dict[tuple[int, bytes], bytes] = {}
        self._second = 0

    def tick(self) -> None:
        second = int(time.time())
        if second != self._second:
            self._second = second
            self.clear()

    def clear(self) -> None:
        self._table.clear()
        self.sized.clear()

    def get(self, status: int, content_type: bytes) -> bytes:
        known = self._table.get((status, content_type))
        if known is not None:
            return known
        made = status_line(status) + field(b"date", formatdate(usegmt=True))
        if content_type:
            made += field(b"content-type", content_type)
        if len(self._table) >= MAX_PREFIXES:
            self.clear()
        self._table[status, content_type] = made
        if status >= 200 and status not in (204, 304):  # those have no length
            self.sized[status, content_type] = made + b"content-length: "
        return made
