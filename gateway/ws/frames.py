"""WebSocket frames (RFC 6455) on the server's side: bytes in, whole messages out, and back.

Pure; knows no socket and no meaning of a message. Invariants: each byte is copied a fixed number of
times however it arrives, nothing is allocated for bytes that were only announced, and no more than
`max_message` bytes of one message are ever kept.
"""

from __future__ import annotations

import struct

from aiohttp._websocket.helpers import websocket_mask  # compiled: a MiB in 40 µs instead of 5 ms

from backends.wire import Buffer

CONTINUED, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
_OPCODES = frozenset({CONTINUED, TEXT, BINARY, CLOSE, PING, PONG})
_FINAL, _RESERVED, _MASKED = 0x80, 0x70, 0x80
# The first bytes of messages in one frame: nearly all that come.
_PLAIN = (_FINAL | TEXT, _FINAL | BINARY)
# A control frame's payload; a close frame's reason has two bytes less.
MAX_CONTROL = 125
MAX_REASON = MAX_CONTROL - 2

NORMAL, GOING_AWAY, PROTOCOL_ERROR, UNSUPPORTED_DATA = 1000, 1001, 1002, 1003
NO_CODE, INVALID_DATA, POLICY, TOO_BIG, INTERNAL, TRY_LATER = 1005, 1007, 1008, 1009, 1011, 1013

_U16 = struct.Struct(">BBH")
_U64 = struct.Struct(">BBQ")


class Broken(Exception):
    """The client broke a rule that ends the socket: with this close code, for this reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class FrameReader:
    """`feed` bytes, then take messages with `next` until it gives None."""

    __slots__ = ("_at", "_data", "_kind", "_max", "_missing", "_tail", "_whole")

    def __init__(self, max_message: int) -> None:
        self._max = max_message
        self._data: bytes | bytearray = b""
        self._at = 0
        # A frame whose end has not come: what there is of it, and how much is missing at least.
        self._tail: bytearray | None = None
        self._missing = 0
        # A message in fragments: its opcode and what there is of it.
        self._kind = 0
        self._whole: bytearray | None = None

    @property
    def pending(self) -> int:
        """Bytes kept of what is not whole yet."""
        tail, whole = self._tail, self._whole
        return (0 if tail is None else len(tail)) + (0 if whole is None else len(whole))

    def feed(self, data: bytes) -> None:
        if self._tail is not None:
            self._tail += data
            self._missing -= len(data)
            if self._missing <= 0:
                self._data, self._at, self._tail = self._tail, 0, None
        elif self._at < len(self._data):
            self._data, self._at = self._data[self._at :] + data, 0
        else:
            self._data, self._at = data, 0

    def next(self) -> tuple[int, Buffer] | None:
        """A message or control frame: opcode and payload. Raises Broken."""
        data, at = self._data, self._at
        size = len(data)
        missing = 1
        while size - at >= 2:
            first, second = data[at], data[at + 1]
            length = second & 127
            start = at + 6
            if length > MAX_CONTROL:
                wide = 2 if length == 126 else 8
                start += wide
                if size < start - 4:
                    break
                length = int.from_bytes(data[at + 2 : start - 4], "big")
            if first not in _PLAIN or second < _MASKED or self._kind or length > self._max:
                self._check(first, second, length)
            end = start + length
            if end > size:
                missing = end - size
                break
            payload = _unmasked(data, start, end)
            if end == size:
                self._data, self._at = b"", 0
            else:
                self._at = end
            if (first in _PLAIN and not self._kind) or first >= _FINAL | CLOSE:
                return first & 15, payload
            message = self._fragment(first, payload)
            if message is not None:
                return message
            data, at = self._data, self._at
            size = len(data)
        if at < size:
            self._tail, self._missing = bytearray(memoryview(data)[at:]), missing
        self._data, self._at = b"", 0
        return None

    def _check(self, first: int, second: int, length: int) -> None:
        opcode = first & 15
        if first & _RESERVED or opcode not in _OPCODES:
            raise Broken(PROTOCOL_ERROR, "the frame uses bits or an opcode that were not agreed on")
        if not second & _MASKED:
            raise Broken(PROTOCOL_ERROR, "a client's frames must be masked")
        if opcode >= CLOSE:
            if length > MAX_CONTROL or not first & _FINAL:
                raise Broken(PROTOCOL_ERROR, "control frames are short and come in one piece")
            return
        if (opcode == CONTINUED) != (self._kind != 0):
            raise Broken(PROTOCOL_ERROR, "fragments of two messages are mixed")
        if length + (0 if self._whole is None else len(self._whole)) > self._max:
            raise Broken(TOO_BIG, f"a message has at most {self._max} bytes")

    def _fragment(self, first: int, payload: bytearray) -> tuple[int, Buffer] | None:
        if self._whole is None:
            self._kind, self._whole = first & 15, payload
        else:
            self._whole += payload
        if not first & _FINAL:
            return None
        message = self._kind, self._whole
        self._kind, self._whole = 0, None
        return message


def _unmasked(data: bytes | bytearray, start: int, end: int) -> bytearray:
    mask = bytes(data[start - 4 : start])
    if type(data) is bytearray and end == len(data):
        # A large frame that came in many pieces: its payload is taken out in place.
        del data[:start]
        payload = data
    else:
        payload = bytearray(data[start:end])
    websocket_mask(mask, payload)
    return payload


def frame(opcode: int, payload: bytes) -> bytes:
    """One whole message or control frame from the server."""
    return head(opcode, len(payload)) + payload


def head(opcode: int, size: int) -> bytes:
    """What goes before a payload of `size` bytes."""
    first = _FINAL | opcode
    if size <= MAX_CONTROL:
        return bytes((first, size))
    if size < 1 << 16:
        return _U16.pack(first, 126, size)
    return _U64.pack(first, 127, size)


def close_frame(code: int, reason: str = "") -> bytes:
    """A reason that is too long is cut at a whole character."""
    if code == NO_CODE:
        return frame(CLOSE, b"")
    text = reason.encode()[:MAX_REASON].decode(errors="ignore").encode()
    return frame(CLOSE, code.to_bytes(2, "big") + text)


def read_close(payload: Buffer) -> int:
    """The code of a client's close frame, NO_CODE where it gives none. Raises Broken."""
    if not len(payload):
        return NO_CODE
    code = int.from_bytes(payload[:2], "big")
    registered = 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999
    if len(payload) < 2 or not registered:
        raise Broken(PROTOCOL_ERROR, "this is no close code that an endpoint may send")
    try:
        bytes(payload[2:]).decode()
    except UnicodeDecodeError as error:
        raise Broken(INVALID_DATA, "the close reason is no UTF-8") from error
    return code
