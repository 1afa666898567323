"""WebSockets that pass through: where their frames end, so that the gateway may say goodbye.

Owns the position within each direction's frames; looks at no payload. A close frame may only stand
between two frames: each side gets one there, and nothing after it. Invariant: until then every byte
passes as it came.
"""

from __future__ import annotations

import os

from gateway.ws.frames import GOING_AWAY, close_frame

REASON = "the gateway is going down"
_MASKED, _LENGTH = 0x80, 0x7F
_EXTENDED = {126: 2, 127: 8}


class FrameSpan:
    """Where the frames of one direction end."""

    __slots__ = ("_head", "_left")

    def __init__(self) -> None:
        self._head = b""  # of a frame whose head is not whole
        self._left = 0  # of a frame's payload

    @property
    def between(self) -> bool:
        """Whether what was fed so far ends with a frame."""
        return not self._left and not self._head

    def feed(self, data: bytes) -> None:
        self._walk(data, stop=False)

    def to_end(self, data: bytes) -> int:
        """How much of `data` belongs to the frame that is under way."""
        return 0 if self.between else self._walk(data, stop=True)

    def _walk(self, data: bytes, *, stop: bool) -> int:
        at, size = 0, len(data)
        while at < size:
            if self._left:
                step = min(self._left, size - at)
                self._left -= step
                at += step
            else:
                at = self._read_head(data, at)
            if stop and self.between:
                return at
        return size

    def _read_head(self, data: bytes, at: int) -> int:
        """As much of a frame's head as is there; returns where it ends."""
        had = len(self._head)
        head = self._head + data[at : at + 14 - had]
        if len(head) < 2:
            self._head = head
            return len(data)
        second = head[1]
        more = _EXTENDED.get(second & _LENGTH, 0)
        need = 2 + more + (4 if second & _MASKED else 0)
        if len(head) < need:
            self._head = head
            return len(data)
        length = second & _LENGTH
        self._left = int.from_bytes(head[2 : 2 + more], "big") if more else length
        self._head = b""
        return at + need - had


class Leaving:
    """One direction of a tunnel that may be asked to end. `goodbye` is what is said then."""

    __slots__ = ("_goodbye", "_span", "_wanted", "said")

    def __init__(self, goodbye: bytes) -> None:
        self._span, self._goodbye = FrameSpan(), goodbye
        self._wanted = self.said = False

    def pass_on(self, data: bytes) -> bytes:
        """What of it goes on."""
        if self.said:
            return b""
        if not self._wanted:
            self._span.feed(data)
            return data
        end = self._span.to_end(data)
        return data[:end] + self._say()

    def leave(self) -> bytes:
        """What to send at once; if that is nothing, it comes behind the frame that is under way."""
        self._wanted = True
        return self._say()

    def _say(self) -> bytes:
        if self.said or not self._span.between:
            return b""
        self.said = True
        return self._goodbye


def to_client() -> Leaving:
    return Leaving(close_frame(GOING_AWAY, REASON))


def to_upstream() -> Leaving:
    """As from a client: masked."""
    plain, mask = close_frame(GOING_AWAY, REASON), os.urandom(4)
    payload = bytes(byte ^ mask[at % 4] for at, byte in enumerate(plain[2:]))
    return Leaving(bytes((plain[0], plain[1] | _MASKED)) + mask + payload)
