"""How fast a queue empties while anything waits in it: what a wait is predicted from.

Owns one busy period's departures. A pace from before says nothing: with nobody waiting, what leaves
is what comes. Reads no clock. Invariant: until a period has lasted LEAST_S, its pace is unknown.
"""

from __future__ import annotations

LEAST_S = 1.0
# Departures longer ago than this count half, and again half: a queue's pace changes.
_SPAN_S = 10.0


class DrainRate:
    """Tell it when a queue gets its first item (`began`), of each that leaves to be served, and
    when the last one has left (`emptied`)."""

    __slots__ = ("_gone", "_since")

    def __init__(self) -> None:
        self._since: float | None = None
        self._gone = 0.0

    def began(self, now: float) -> None:
        if self._since is None:
            self._since, self._gone = now, 0.0

    def left(self, now: float, cost: float) -> None:
        since = self._since
        if since is not None:
            self._gone += cost
            if now - since > 2 * _SPAN_S:
                self._since, self._gone = now - _SPAN_S, self._gone * _SPAN_S / (now - since)

    def emptied(self) -> None:
        self._since = None

    def rate(self, now: float) -> float:
        """Cost per second; 0 where it is not known."""
        since = self._since
        return self._gone / (now - since) if since is not None and now - since >= LEAST_S else 0.0
