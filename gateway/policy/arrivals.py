"""How fast requests arrive: a two-speed estimate of rows per second.

Owns two exponentially weighted rates. The slow one is steady; the fast one is believed as soon as
it has moved away by more than chance moves it, so that a burst or a lull counts at once. Never
reads a clock. Arrivals are folded in once per quantum, which makes `observe` a comparison and an
addition. Invariant: before anything arrived the rate is 0, and it rises from there.
"""

from __future__ import annotations

from math import exp, sqrt

_QUANTA = 16  # folds per fast span: coarse enough to be cheap, fine against the span
_CHANCE = 2.5  # standard deviations; tuned in bench/sim on Poisson and on bursty arrivals


class ArrivalRate:
    """`fast_s`, `slow_s`: the spans over which the two estimates forget, in seconds."""

    __slots__ = (
        "_fast",
        "_fast_s",
        "_fold_at",
        "_folded",
        "_pending",
        "_quantum",
        "_slow",
        "_slow_s",
    )

    def __init__(self, fast_s: float = 0.25, slow_s: float = 3.0) -> None:
        if not 0 < fast_s < slow_s:
            raise ValueError("fast_s must lie between 0 and slow_s")
        self._fast_s, self._slow_s = fast_s, slow_s
        self._quantum = fast_s / _QUANTA
        self._fast = self._slow = 0.0  # rows per second
        self._pending = 0
        self._folded = self._fold_at = 0.0

    def observe(self, now: float, rows: int) -> None:
        if now >= self._fold_at:
            self._fold(now)
        self._pending += rows

    def rate(self, now: float) -> float:
        """Rows per second."""
        if now >= self._fold_at:
            self._fold(now)
        # A Poisson stream of rate r, averaged over a span s, has the variance r / 2s.
        chance = _CHANCE * sqrt(self._slow / (2.0 * self._fast_s))
        return self._fast if abs(self._fast - self._slow) > chance else self._slow

    def _fold(self, now: float) -> None:
        """Count what is pending as spread over the time since the last fold."""
        elapsed = now - self._folded
        if elapsed > 0.0:
            rate = self._pending / elapsed
            self._fast += (rate - self._fast) * (1.0 - exp(-elapsed / self._fast_s))
            self._slow += (rate - self._slow) * (1.0 - exp(-elapsed / self._slow_s))
            self._pending = 0
            self._folded = now
        self._fold_at = now + self._quantum
