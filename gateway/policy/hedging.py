"""Hedging: a second copy of a request that is slower than nearly all others, on another replica.

For short idempotent tensor requests only, never for generation. The delay is learned: the p95 of
what requests take, so that about one in twenty qualifies; a hard budget bounds the extra load when
everything is slow at once. Reads no clock; the shell keeps the timer and cancels the loser.
"""

from __future__ import annotations

from gateway.policy.quantile import RecentQuantile
from gateway.policy.retry import RetryBudget


class Hedging:
    """`min_delay_s`: below it the copy costs more than it saves. `max_extra`: share of requests."""

    def __init__(
        self, quantile: float = 0.95, max_extra: float = 0.05, min_delay_s: float = 0.001
    ) -> None:
        self._quantile = RecentQuantile(quantile)
        self._budget = RetryBudget(ratio=max_extra, floor=0)
        self._min_delay_s = min_delay_s

    def delay(self, now: float) -> float | None:
        """A request starts: seconds after which to ask `take`; None while nothing is known."""
        self._budget.request(now)
        value = self._quantile.value
        return None if value is None else max(value, self._min_delay_s)

    def observe(self, seconds: float) -> None:
        """What a request's first copy took, or had taken when the second won."""
        self._quantile.observe(seconds)

    def take(self, now: float) -> bool:
        """Whether the copy may be sent; spends from the budget."""
        return self._budget.take(now)
