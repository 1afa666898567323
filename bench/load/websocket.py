"""A WebSocket connection of the generator: one message at a time, its answer timed.

Owns the handshake and the frames (RFC 6455, no extensions). An answer is one message; Penstock's
`delta` messages come before it, and its `error` messages have a status. Invariant: as that of
`Connection`: each `send` ends in exactly one `answered` or `broken`.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import struct
import time
from typing import cast
from urllib.parse import urlsplit

from bench.load.events import StreamOwner
from bench.load.spec import LoadSpec

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
_STATUS = re.compile(rb'"type": ?"error".*?"status": ?(\d{3})', re.DOTALL)
_DELTA = re.compile(rb'^.{0,8}\{"type": ?"delta"', re.DOTALL)
LONGEST = 256 * 2**20


class SocketConnection(asyncio.Protocol):
    """`opened` ends when the handshake did. See `Connection` for the rest."""

    def __init__(self, owner: StreamOwner, spec: LoadSpec) -> None:
        self._owner, self._spec = owner, spec
        self._data = bytearray()
        self._message = bytearray()
        self._last = 0.0
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._open = self.busy = self.counted = False
        self.since = self.sent = 0.0
        self.received = 0
        self.said = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        parts = urlsplit(self._spec.url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [f"GET {target} HTTP/1.1", f"host: {parts.netloc}", "connection: Upgrade"]
        lines += ["upgrade: websocket", "sec-websocket-version: 13", f"sec-websocket-key: {key}"]
        lines += [f"{name}: {value}" for name, value in self._spec.headers.items()]
        self._transport.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n")

    @property
    def usable(self) -> bool:
        return self._open and not self.busy

    def send(self, request: bytes, since: float) -> None:
        """`request`: a whole frame, as `render` makes it."""
        self.busy, self.since, self._last = True, since, 0.0
        self.sent = time.monotonic()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        self._data += data
        if not self._open:
            self._handshake()
        while self._open and self._take_frame():
            pass

    def _handshake(self) -> None:
        end = self._data.find(b"\r\n\r\n")
        if end < 0 or self.opened.done():
            return
        status = bytes(self._data[: self._data.find(b"\r\n")]).decode("latin-1")
        del self._data[: end + 4]
        if " 101" in status:
            self._open = True
            self.opened.set_result(None)
        else:
            self.opened.set_exception(ConnectionError(f"the handshake was answered {status!r}"))
            self._transport.abort()

    def _take_frame(self) -> bool:
        """Whether there was a whole one."""
        data = self._data
        if len(data) < 2:
            return False
        at, length = 2, data[1] & 0x7F
        if length >= 126:
            form = ">H" if length == 126 else ">Q"
            at += struct.calcsize(form)
            if len(data) < at:
                return False
            (length,) = struct.unpack_from(form, data, 2)
        if length > LONGEST or data[1] & 0x80:
            self.abandon("no WebSocket frame")
            return False
        if len(data) < at + length:
            return False
        first, payload = data[0], bytes(data[at : at + length])
        del data[: at + length]
        self._frame(first & 0x0F, bool(first & 0x80), payload)
        return True

    def _frame(self, kind: int, last: bool, payload: bytes) -> None:
        if kind == PING:
            self._transport.write(frame(payload, kind=PONG))
        elif kind == CLOSE:
            code = int.from_bytes(payload[:2], "big") or 1005
            self.abandon(f"close {code}")
        elif kind in (CONTINUATION, TEXT, BINARY):
            self._message += payload
            if last:
                message, self._message = bytes(self._message), bytearray()
                self._answer(message)

    def _answer(self, message: bytes) -> None:
        if not self.busy:
            return
        if _DELTA.match(message) is not None:
            now, first = time.monotonic(), not self._last
            self._owner.events(self, 1, now - (self._last or self.since), first)
            self._last = now
            return
        found = _STATUS.search(message[:512])
        self.busy, self.said = False, message
        self._owner.answered(self, 200 if found is None else int(found[1]))

    def connection_lost(self, error: Exception | None) -> None:
        was, self._open = self._open, False
        if not self.opened.done():
            self.opened.set_exception(ConnectionError("closed in the handshake"))
        elif self.busy:
            self._end("reset" if error is not None else "closed")
        elif was:
            self._owner.gone(self)

    def abandon(self, why: str) -> None:
        if self._open:
            self._transport.abort()
        was, self._open = self._open, False
        if self.busy:
            self._end(why)
        elif was and why != "timeout":
            self._owner.gone(self)

    def _end(self, why: str) -> None:
        self.busy = self._open = False
        self._owner.broken(self, why)


def frame(payload: bytes, *, kind: int = TEXT) -> bytes:
    """A client's frame. The mask is zero: it guards caches from scripts, and here are neither."""
    size = len(payload)
    if size < 126:
        head = struct.pack(">BB", 0x80 | kind, 0x80 | size)
    elif size < 65536:
        head = struct.pack(">BBH", 0x80 | kind, 0x80 | 126, size)
    else:
        head = struct.pack(">BBQ", 0x80 | kind, 0x80 | 127, size)
    return head + bytes(4) + payload


def render(spec: LoadSpec) -> bytes:
    """The message of a load; binary where it is no UTF-8."""
    try:
        spec.body.decode()
    except UnicodeDecodeError:
        return frame(spec.body, kind=BINARY)
    return frame(spec.body)
