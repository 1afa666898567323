"""An adaptive limit on requests in flight, driven by how long they queue at the replicas.

After Netflix's Gradient2, with one change: it compares the time that requests wait with the time
that they are served, never total latency with its own past. So long answers do not lower it, and
lasting overload does not become the new normal. Reads no clock.
"""

from __future__ import annotations

from math import sqrt


class ConcurrencyLimit:
    """Requests may wait up to `tolerance` × their service time before the limit falls. It moves
    once per `period_s`, by at most half, and stays while less than half of it is in use."""

    def __init__(
        self,
        *,
        initial: float = 32.0,
        least: float = 4.0,
        most: float = 4096.0,
        tolerance: float = 0.5,
        period_s: float = 0.1,
        smoothing: float = 0.2,
    ) -> None:
        if not 1.0 <= least <= initial <= most:
            raise ValueError("1 <= least <= initial <= most must hold")
        if not tolerance > 0.0 or not period_s > 0.0 or not 0.0 < smoothing <= 1.0:
            raise ValueError("tolerance, period_s and smoothing must be above 0, smoothing <= 1")
        self._limit, self._least, self._most = initial, least, most
        self._tolerance, self._period_s, self._smoothing = tolerance, period_s, smoothing
        self._ends: float | None = None
        self._queued = self._served = 0.0
        self._samples = self._peak = 0
        self.in_flight = 0

    @property
    def limit(self) -> int:
        return int(self._limit)

    def take(self) -> bool:
        """One more request, if the limit has room; it owes one `release`."""
        if self.in_flight >= int(self._limit):
            return False
        self.in_flight += 1
        self._peak = max(self._peak, self.in_flight)
        return True

    def release(self) -> None:
        """Once per `take` that said yes."""
        assert self.in_flight > 0, "released more often than taken"
        self.in_flight -= 1

    def observe(self, now: float, queued: float, served: float) -> None:
        """A request waited `queued` seconds at its replica and was served in `served`."""
        self._queued += queued
        self._served += served
        self._samples += 1
        if self._ends is None:
            self._ends = now + self._period_s
        elif now >= self._ends and self._samples >= _ENOUGH:
            self._move()
            self._ends = now + self._period_s
            self._queued = self._served = 0.0
            self._samples, self._peak = 0, self.in_flight

    def _move(self) -> None:
        if self._peak < self._limit / 2:
            return  # it did not bind: nothing was learnt about it
        allowed = (1.0 + self._tolerance) * self._served
        spent = self._served + self._queued
        gradient = min(1.0, max(0.5, allowed / spent)) if spent > 0.0 else 1.0
        aim = self._limit * gradient + sqrt(self._limit)
        moved = self._limit + self._smoothing * (aim - self._limit)
        self._limit = min(max(moved, self._least), self._most)


def crowd_of(tolerance: float | None) -> ConcurrencyLimit | None:
    """A limit with this tolerance; None: none is wanted."""
    return None if tolerance is None else ConcurrencyLimit(tolerance=tolerance)


class RecentLeast:
    """The least value of the last one to two `window_s`; what is unusually quick is forgotten."""

    def __init__(self, window_s: float = 10.0) -> None:
        self._window_s, self._ends = window_s, float("-inf")
        self._old = self._new = float("inf")

    def observe(self, now: float, value: float) -> float:
        """The least, this value included."""
        if now >= self._ends:
            gap = now >= self._ends + self._window_s
            self._old, self._new = float("inf") if gap else self._new, value
            self._ends = now + self._window_s
        self._new = min(self._new, value)
        return min(self._old, self._new)


_ENOUGH = 10  # samples that a move rests on
