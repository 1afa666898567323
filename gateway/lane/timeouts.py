"""Time limits without timers: each connection is looked at now and then, and judged.

Pure: the connection's notes and `now` in, a verdict out. Nothing on the path of a request reads a
clock for this beyond the one reading that a request gets anyway.
"""

from __future__ import annotations

from gateway.lane.limits import Limits


class Pace:
    """How fast a body comes: at least `min_body_rate`, averaged over `body_timeout_s`."""

    __slots__ = ("_seen", "_since", "received")

    def __init__(self, now: float) -> None:
        self.received = 0  # bytes on the wire
        self._seen = 0
        self._since = now

    def is_slow(self, now: float, limits: Limits) -> bool:
        if now - self._since <= limits.body_timeout_s:
            return False
        if self.received - self._seen < limits.min_body_rate * limits.body_timeout_s:
            return True
        self.restart(now)
        return False

    def restart(self, now: float) -> None:
        """The client was not to blame so far."""
        self._seen, self._since = self.received, now


class Outflow:
    """Whether a client takes its answers: some bytes at least every `write_timeout_s`."""

    __slots__ = ("_left", "_since")

    def __init__(self) -> None:
        self._left = -1
        self._since = 0.0

    def is_stalled(self, left: int, now: float, limits: Limits) -> bool:
        """`left`: bytes that wait for the socket."""
        if left != self._left:
            self._left, self._since = left, now
            return False
        return now - self._since > limits.write_timeout_s
