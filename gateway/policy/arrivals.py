"""How fast requests arrive: a two-speed estimate of rows per second.

Owns two exponentially weighted rates. The slow one is steady; the fast one wins when it has moved
away by more than chance would move it, so a burst or a lull is believed within a few fast spans.
Never reads a clock. Arrivals are counted and folded in once per quantum, so that `observe` costs a
comparison and an addition.
"""

from __future__ import annotations

from math import exp, sqrt


class ArrivalRate:
    """`fast_s`, `slow_s`: the spans over which the two estimates forget, in seconds."""

    __slots__ = ("_fast", "_fast_s", "_fold_at", "_folded", "_pending", "_quantum", "_seen",
                 "_slow", "_slow_s")  # fmt: skip

    def __init__(self, fast_s: float = 0.25, slow_s: float = 5.0) -> None:
        if not 0 < fast_s < slow_s:
            raise ValueError("fast_s must lie between 0 and slow_s")
        self._fast_s, self._slow_s = fast_s, slow_s
        self._quantum = fast_s / 16  # coarse enough to be cheap, fine against the fast span
        self._fast = self._slow = 0.0  # rows, each weighted by exp(-age / span)
        self._seen = 0.0  # seconds since the first arrival: how full the spans are
        self._pending = 0
        self._folded = self._fold_at = 0.0

    def observe(self, now: float, rows: int) -> None:
        if now >= self._fold_at:
            self._fold(now)
        self._pending += rows

    def rate(self, now: float) -> float:
        """Rows per second; 0 before the first arrival."""
        if now > self._folded:
            self._fold(now)
        if not self._seen:
            return 0.0
        # Until a span is full, divide by the weight that time since the start has had.
        slow_weight = self._slow_s * -_expm1(-self._seen / self._slow_s)
        fast_weight = self._fast_s * -_expm1(-self._seen / self._fast_s)
        slow, fast = self._slow / slow_weight, self._fast / fast_weight
        # The fast count of a Poisson stream of the slow rate has variance rate x span / 2.
        chance = 2.0 * sqrt(max(slow, fast) / (2.0 * fast_weight))
        return fast if abs(fast - slow) > chance else slow

    def _fold(self, now: float) -> None:
        if self._folded == 0.0 and not self._seen and not self._pending:
            elapsed = 0.0  # the first arrival starts the spans
        else:
            elapsed = max(now - self._folded, 0.0)
        self._fast = (self._fast + self._pending) * exp(-elapsed / self._fast_s)
        self._slow = (self._slow + self._pending) * exp(-elapsed / self._slow_s)
        self._seen += elapsed
        self._pending = 0
        self._folded, self._fold_at = now, now + self._quantum


def _expm1(x: float) -> float:
    return exp(x) - 1.0
