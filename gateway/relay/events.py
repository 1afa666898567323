"""An event stream (SSE) on its way through: whole events only.

Owns the unfinished event at the end of what has come. Because of it a client never sees half an
event, and the gateway may put a comment or an error between two. Invariant: nothing is changed,
dropped or kept once the event's end has come; more than LONGEST of an event passes unfinished.
"""

from __future__ import annotations

LONGEST = 64 * 1024
HEARTBEAT = b":\n\n"


class EventGate:
    """`whole`: what was passed on so far ends with an event."""

    __slots__ = ("_rest", "whole")

    def __init__(self) -> None:
        self._rest = b""
        self.whole = True

    def feed(self, data: bytes) -> bytes:
        """What may go on to the client now."""
        if not self._rest and data.endswith(b"\n\n"):
            self.whole = True
            return data
        data = self._rest + data
        end = max(data.rfind(b"\n\n") + 2, data.rfind(b"\n\r\n") + 3, data.rfind(b"\r\r") + 2)
        if end < 3:
            end = 0  # none was found
        if len(data) - end > LONGEST:
            self._rest, self.whole = b"", False
            return data
        self._rest = data[end:]
        self.whole = self.whole or end > 0
        return data[:end]

    def finish(self) -> bytes:
        """The stream is over; what was kept."""
        rest, self._rest = self._rest, b""
        return rest
