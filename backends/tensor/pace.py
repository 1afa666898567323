"""How long a batch takes here at the least: what cannot be answered in time is not begun.

Owns a smoothed time for each size (by powers of two) of the version that serves. Pure: `now` comes
in. An old figure is not believed: where nothing was run for a while, the next batch is, and tells.
"""

from __future__ import annotations

_SHARE = 0.2  # of a new time in the smoothed one
_DOUBT = 0.9  # a batch may be a little faster than it usually is
_STALE_S, _STALE_BATCHES = 2.0, 10.0


class Pace:
    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._seen = float("-inf")

    def observe(self, rows: int, seconds: float, now: float) -> None:
        size = rows.bit_length()
        known = self._seconds.get(size, seconds)
        self._seconds[size] = known + (seconds - known) * _SHARE
        self._seen = now

    def reset(self) -> None:
        """Another version serves."""
        self._seconds.clear()

    def least(self, now: float) -> float:
        """Seconds in which no batch ends, as far as is known; 0 where nothing is."""
        if not self._seconds:
            return 0.0
        seconds = min(self._seconds.values()) * _DOUBT
        fresh = now - self._seen < max(_STALE_S, _STALE_BATCHES * seconds)
        return seconds if fresh else 0.0
