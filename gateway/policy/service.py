"""How long a replica takes for a batch: a curve learned from what it did.

Owns one curve, for one (model, version, replica, shape bucket). Sizes are rows, or elements where
the model's batches are budgeted in elements. Never reads a clock; the caller starts a new curve
when a replica reloads or restarts. Invariant: both curves rise with the size (isotonic).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

_HALF_LIFE = 32  # observations of a size after which the older half of its mean's weight is gone
_TABLE = 1024  # sizes up to here are looked up in a list
_STALE = 2048.0  # observations after which an unvisited size weighs half


class ServiceCurve:
    """`quantile` is what `upper` estimates. Before the first observation both curves are 0."""

    def __init__(self, quantile: float = 0.9) -> None:
        if not 0.5 <= quantile < 1:
            raise ValueError("quantile must lie in [0.5, 1)")
        self.quantile = quantile
        self._knots: dict[int, _Knot] = {}
        self._count = 0
        self._spread = 1.0  # the quantile of observed / mean
        self._rebuild_at = 0
        self._sizes: list[float] = []
        self._means: list[float] = []
        self._table: list[float] = [0.0] * (_TABLE + 1)
        self._slope = 0.0

    @property
    def known(self) -> bool:
        return self._count > 0

    def mean(self, size: int) -> float:
        """Expected seconds for a batch of `size`."""
        return self._table[size] if size <= _TABLE else self._interpolate(size)

    def upper(self, size: int) -> float:
        """Seconds that a batch of `size` exceeds in a share 1 - quantile of the cases."""
        return self.mean(size) * self._spread

    def observe(self, size: int, seconds: float) -> None:
        self._count += 1
        index = _bin(size)
        knot = self._knots.get(index)
        if knot is None:
            knot = self._knots[index] = _Knot()
        expected = self.mean(size)
        if expected > 0.0 and self._count > 4:
            # Robbins-Monro: at rest, a share `quantile` of the ratios lies below.
            step = 0.02 if self._count > 100 else 0.1
            above = seconds > expected * self._spread
            self._spread += step * (self.quantile if above else self.quantile - 1.0) * 0.5
            self._spread = min(max(self._spread, 1.0), 4.0)
        knot.observe(size, seconds, self._count)
        if self._count >= self._rebuild_at or abs(seconds - expected) > 0.5 * expected:
            self._rebuild()

    def _rebuild(self) -> None:
        self._rebuild_at = self._count + (1 if self._count < 16 else 16)
        knots = sorted(self._knots.values(), key=lambda knot: knot.size)
        weights = [k.weight * _STALE / (_STALE + self._count - k.seen) for k in knots]
        sizes = [k.size for k in knots]
        means = isotonic([k.mean for k in knots], weights)
        self._sizes, self._means, self._slope = sizes, means, _slope(sizes, means, weights)
        self._table = [0.0] + [self._interpolate(size) for size in range(1, _TABLE + 1)]

    def _interpolate(self, size: float) -> float:
        sizes, means = self._sizes, self._means
        if not sizes:
            return 0.0
        i = bisect_left(sizes, size)
        if i == len(sizes):
            return means[-1] + (size - sizes[-1]) * self._slope
        if i == 0:
            return max(means[0] - (sizes[0] - size) * self._slope, means[0] * size / sizes[0])
        share = (size - sizes[i - 1]) / (sizes[i] - sizes[i - 1])
        return means[i - 1] + share * (means[i] - means[i - 1])


class _Knot:
    """What was seen at one size, or at one narrow range of sizes."""

    __slots__ = ("mean", "seen", "size", "weight")

    def __init__(self) -> None:
        self.size = self.mean = self.weight = 0.0
        self.seen = 0

    def observe(self, size: int, seconds: float, count: int) -> None:
        self.weight = min(self.weight + 1.0, _HALF_LIFE)
        self.mean += (seconds - self.mean) / self.weight
        self.size += (size - self.size) / self.weight
        self.seen = count


def _bin(size: int) -> int:
    """Sizes below 32 have a knot each; above, 16 knots per doubling."""
    if size < 32:
        return size
    shift = size.bit_length() - 5
    return (shift << 4) + (size >> shift)


def isotonic(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The closest rising sequence (pool adjacent violators)."""
    blocks: list[tuple[float, float, int]] = []  # mean, weight, length
    for value, weight in zip(values, weights, strict=True):
        mean, total, length = value, weight, 1
        while blocks and blocks[-1][0] >= mean:
            before, w, n = blocks.pop()
            mean = (before * w + mean * total) / (w + total)
            total, length = total + w, length + n
        blocks.append((mean, total, length))
    return [mean for mean, _, length in blocks for _ in range(length)]


def _slope(sizes: Sequence[float], means: Sequence[float], weights: Sequence[float]) -> float:
    """Least-squares seconds per size, at least 0; with one knot, half of it is taken as fixed."""
    if len(sizes) == 1:
        return 0.5 * means[0] / sizes[0]
    total = sum(weights)
    x = sum(w * s for w, s in zip(weights, sizes, strict=True)) / total
    y = sum(w * m for w, m in zip(weights, means, strict=True)) / total
    xy = sum(w * (s - x) * (m - y) for w, s, m in zip(weights, sizes, means, strict=True))
    xx = sum(w * (s - x) ** 2 for w, s in zip(weights, sizes, strict=True))
    return max(xy / xx, 0.0) if xx > 0 else 0.0
