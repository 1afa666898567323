"""A quantile of the recent values of a stream, in fixed memory.

Owns a histogram with logarithmic buckets (4.4 % wide); old values fade by halving. Never stores
values. Invariant: the estimate lies within one bucket of the true quantile of the faded sample.
"""

from __future__ import annotations

from math import log2

_PER_OCTAVE = 16
_LOWEST = -20  # values below 2^-20 s (1 µs) share the first bucket
_BUCKETS = 40 * _PER_OCTAVE  # up to 2^20 s


class RecentQuantile:
    """`window`: values after which those before weigh half. `refresh`: values between estimates."""

    def __init__(self, quantile: float, window: int = 1024, refresh: int = 32) -> None:
        if not 0.0 < quantile < 1.0:
            raise ValueError(f"quantile must lie between 0 and 1, not {quantile}")
        self._quantile, self._window, self._refresh = quantile, window, refresh
        self._counts = [0.0] * _BUCKETS
        self._total = 0.0
        self._since = 0
        self._value = 0.0
        self.observed = 0

    @property
    def value(self) -> float | None:
        """None until a value beyond the quantile is to be expected among those seen."""
        return self._value if self.observed * (1.0 - self._quantile) >= 1.0 else None

    def observe(self, value: float) -> None:
        index = int((log2(value) - _LOWEST) * _PER_OCTAVE) if value > 0.0 else 0
        self._counts[min(max(index, 0), _BUCKETS - 1)] += 1.0
        self._total += 1.0
        self.observed += 1
        self._since += 1
        if self._since >= self._refresh or self.observed <= self._refresh:
            self._since = 0
            self._estimate()

    def _estimate(self) -> None:
        rank, seen = self._quantile * self._total, 0.0
        for index, count in enumerate(self._counts):
            seen += count
            if seen >= rank and count:
                inside = 1.0 - (seen - rank) / count
                self._value = 2.0 ** (_LOWEST + (index + inside) / _PER_OCTAVE)
                break
        if self._total >= 2 * self._window:
            self._counts = [count / 2 for count in self._counts]
            self._total = sum(self._counts)
