"""Loss spikes: whether a loss is so far above those before it that training should stop.

Owns the rule, nothing else. Pure. Invariant: as all ranks read the same losses, all decide alike.
"""

from __future__ import annotations

from collections import deque
from statistics import median


class Spikes:
    """A loss above `factor` times the median of the `window` before it is a spike; None: never.

    The median, not the mean: one outlier must not hide the next. Half a window must have been seen,
    as losses fall steeply at the start.
    """

    def __init__(self, factor: float | None, window: int) -> None:
        self._factor, self._seen = factor, deque[float](maxlen=window)
        self._least = (window + 1) // 2

    def usual(self, loss: float) -> float | None:
        """The usual loss, if this one is a spike; else it is remembered."""
        if self._factor is None:
            return None
        if len(self._seen) >= self._least:
            usual = median(self._seen)
            if loss > self._factor * usual > 0:
                return usual
        self._seen.append(loss)
        return None
