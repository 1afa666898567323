"""One keep-alive HTTP/1.1 connection of the generator: one request at a time, its answer timed.

Owns the socket and the parser. Knows nothing of loops or rates: whoever has it says when to send
and is told how that ended. Invariant: each `send` ends in exactly one `answered` or `broken`.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

import httptools

from bench.load.spec import LoadSpec

# Where an answer without either of them ends, the connection does.
SIZED = re.compile(rb"\r\n(?:content-length|transfer-encoding):", re.IGNORECASE)
# In the head of an answer, which arrives in one piece or is not counted.
BATCH = re.compile(rb'\r\nserver-timing: [^\r]*batch;desc="(\d+)"')


class Owner(Protocol):
    """`connection` is a `Connection` or one of the other modes'."""

    def answered(self, connection: Any, status: int) -> None: ...
    def broken(self, connection: Any, why: str) -> None:
        """The request failed without an answer; the connection is gone."""

    def gone(self, connection: Any) -> None:
        """Closed by the server between requests."""

    def told(self, connection: Any, rows: int) -> None:
        """The answer says how many rows were executed together."""


class Connection(asyncio.Protocol):
    """`since` is what latency counts from, `sent` when the bytes went out; `counted` is the
    owner's note whether the request is in the report. `said`: the last piece of the answer."""

    __slots__ = (
        "_head", "_open", "_owner", "_parser", "_timing", "_to_end", "_transport",
        "busy", "counted", "received", "said", "sent", "since",
    )  # fmt: skip

    def __init__(self, owner: Owner, *, timing: bool = False) -> None:
        self._owner, self._timing = owner, timing
        self._parser = httptools.HttpResponseParser(self)
        self._head: bytes | None = b""  # None: the answer's body has begun
        self._open = self._to_end = False
        self.busy = self.counted = False
        self.since = self.sent = 0.0
        self.received = 0
        self.said = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._open = True

    @property
    def usable(self) -> bool:
        return self._open and not self.busy

    def send(self, request: bytes, since: float) -> None:
        self.busy = True
        self.since = since
        self.sent = time.monotonic()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        self.said = data
        if self._timing and (found := BATCH.search(data)) is not None:
            self._owner.told(self, int(found[1]))
        if self._head is not None:
            self._head += data
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.abandon("not HTTP")

    def on_headers_complete(self) -> None:
        # The parser wants the connection's end for either reason.
        if not self._parser.should_keep_alive():
            self._to_end = SIZED.search(self._head or b"") is None
        self._head = None

    def on_message_complete(self) -> None:
        self._head = b""
        status = self._parser.get_status_code()
        if status < 200 or not self.busy:  # 100 Continue; an answer that nobody asked for
            return
        self.busy = False
        if not self._parser.should_keep_alive():
            self._open = False
            self._transport.close()
        self._owner.answered(self, status)

    def connection_lost(self, error: Exception | None) -> None:
        if self.busy and self._to_end and error is None:
            self._open = self._to_end = False
            self.on_message_complete()
        elif self.busy:
            self._end("reset" if error is not None else "closed")
        elif self._open:
            self._open = False
            self._owner.gone(self)

    def abandon(self, why: str) -> None:
        """End the request that is under way, if one is, and the connection."""
        if self._open:
            self._transport.abort()
        if self.busy:
            self._end(why)
        self._open = False

    def _end(self, why: str) -> None:
        self.busy = self._open = False
        self._owner.broken(self, why)


def render(spec: LoadSpec) -> bytes:
    """The request's bytes. Raises ValueError for a header that cannot be sent."""
    parts = urlsplit(spec.url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    headers = {"host": parts.netloc.rpartition("@")[2], "accept": "*/*"}
    headers |= {name.lower(): value for name, value in spec.headers.items()}
    if spec.timing:
        headers["x-timing"] = "1"
    if spec.body or spec.method not in ("GET", "DELETE", "OPTIONS"):
        headers["content-length"] = str(len(spec.body))
    head = f"{spec.method} {target} HTTP/1.1\r\n"
    for name, value in headers.items():
        if any(mark in name + value for mark in "\r\n\0"):
            raise ValueError(f"header {name!r} holds a line break")
        head += f"{name}: {value}\r\n"
    try:
        return head.encode("latin-1") + b"\r\n" + spec.body
    except UnicodeEncodeError as error:
        letter = error.object[error.start]
        raise ValueError(f"a header holds {letter!r}, which cannot be sent") from error
