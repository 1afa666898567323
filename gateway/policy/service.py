"""How long a replica takes for a batch: a curve learned from what it did.

Owns one curve, for one (model, version, replica, shape bucket). Sizes are rows, or elements where
the model's batches are budgeted in elements. Never reads a clock; the caller starts a new curve
when a replica reloads or restarts. Invariants: `mean` and `upper` never fall as the size rises; one
stalled batch (a warm-up, a collection) is forgotten as soon as the next observations disagree.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

_MEMORY = 32  # observations of a size that its mean stands on
_RECENT = 5  # last observations of a size; their lower median tells a stall from a change
_STALE = 512.0  # observations elsewhere after which a size's own weigh half
_PRIOR = 1.0  # observations that the straight line through all sizes counts as
_SPACING = 64  # observations between two rebuilds of a settled curve
_DRIFT = 0.25  # relative surprise that makes a rebuild due at once
_TABLE = 1024  # sizes up to here are looked up in a list


class ServiceCurve:
    """Seconds by size. Before the first observation both curves are 0 everywhere.

    `quantile` is what `upper` estimates. `changes` counts the rebuilds: what was derived from the
    curve holds while it stays the same.
    """

    def __init__(self, quantile: float = 0.9) -> None:
        if not 0.5 <= quantile < 1:
            raise ValueError("quantile must lie in [0.5, 1)")
        self.quantile = quantile
        self.changes = 0
        self._knots: dict[int, _Knot] = {}
        self._count = 0
        self._rebuild_at = 0
        self._spread = 1.0  # the quantile of observed / mean
        self._sizes: list[float] = [0.0]
        self._means: list[float] = [0.0]
        self._slope = 0.0
        self._table: list[float] = [0.0]

    @property
    def known(self) -> bool:
        return self._count > 0

    def mean(self, size: int) -> float:
        """Expected seconds for a batch of `size`."""
        return self._table[size] if size < len(self._table) else self._interpolate(size)

    def upper(self, size: int) -> float:
        """Seconds that a batch of `size` exceeds in a share 1 - quantile of the cases."""
        return self.mean(size) * self._spread

    def means(self, step: int, count: int) -> list[float]:
        """`mean` at 0, step, 2 step, … count step."""
        if step == 1 and count < len(self._table):
            return self._table[: count + 1]
        return [0.0] + [self.mean(step * i) for i in range(1, count + 1)]

    def observe(self, size: int, seconds: float) -> None:
        """A batch of `size` took `seconds`."""
        self._count += 1
        knot = self._knots.get(place := _place(size))
        if knot is None:
            knot = self._knots[place] = _Knot()
        expected = self.mean(size)
        knot.observe(size, seconds, self._count)
        if expected > 0.0:
            self._learn_spread(seconds / expected)
        if self._count >= self._rebuild_at or abs(knot.mean - expected) > _DRIFT * expected:
            self._rebuild()

    def _learn_spread(self, ratio: float) -> None:
        """Robbins-Monro: it rests where a share `quantile` of the ratios lies below."""
        step = 0.01 if self._count > 100 else 0.04
        rise = self.quantile if ratio > self._spread else self.quantile - 1.0
        self._spread = min(max(self._spread + step * rise, 1.0), 4.0)

    def _rebuild(self) -> None:
        self.changes += 1
        self._rebuild_at = self._count + min(self._count, _SPACING)
        knots = sorted(self._knots.values(), key=lambda knot: knot.size)
        sizes = [knot.size for knot in knots]
        means = [knot.mean for knot in knots]
        weights = [k.weight * _STALE / (_STALE + self._count - k.seen) for k in knots]
        fixed, self._slope = _line(sizes, means, weights)
        # A size that was seen seldom or long ago leans on its neighbours.
        leaning = [
            (weight * mean + _PRIOR * (fixed + self._slope * size)) / (weight + _PRIOR)
            for size, mean, weight in zip(sizes, means, weights, strict=True)
        ]
        self._sizes, self._means = sizes, isotonic(leaning, weights)
        self._table = self._tabulate(min(2 * int(sizes[-1]) + 32, _TABLE))

    def _tabulate(self, reach: int) -> list[float]:
        """`_interpolate` at 0 … reach, piece by piece."""
        sizes, means = self._sizes, self._means
        table = [0.0]
        table += [self._interpolate(size) for size in range(1, min(int(sizes[0]), reach) + 1)]
        for i in range(1, len(sizes)):
            rise = (means[i] - means[i - 1]) / (sizes[i] - sizes[i - 1])
            base = means[i - 1] - rise * sizes[i - 1]
            table += [base + rise * x for x in range(len(table), min(int(sizes[i]), reach) + 1)]
        base = means[-1] - self._slope * sizes[-1]
        table += [base + self._slope * size for size in range(len(table), reach + 1)]
        return table

    def _interpolate(self, size: float) -> float:
        sizes, means = self._sizes, self._means
        i = bisect_left(sizes, size)
        if i == len(sizes):
            return means[-1] + (size - sizes[-1]) * self._slope
        if i == 0:
            return max(means[0] - (sizes[0] - size) * self._slope, means[0] * size / sizes[0])
        share = (size - sizes[i - 1]) / (sizes[i] - sizes[i - 1])
        return means[i - 1] + share * (means[i] - means[i - 1])


class _Knot:
    """What was seen at one size, or in one narrow range of sizes."""

    __slots__ = ("_recent", "mean", "seen", "size", "weight")

    def __init__(self) -> None:
        self.size = self.mean = self.weight = 0.0
        self.seen = 0
        self._recent: list[float] = []

    def observe(self, size: int, seconds: float, count: int) -> None:
        recent = self._recent
        recent.append(seconds)
        if len(recent) > _RECENT:
            del recent[0]
        middle = sorted(recent)[(len(recent) - 1) // 2]
        self.weight = min(self.weight + 1.0, _MEMORY)
        self.size += (size - self.size) / self.weight
        self.seen = count
        if len(recent) < _RECENT or not 0.5 * middle < self.mean < 2.0 * middle:
            self.mean = middle  # young, or the replica has changed: believe what is recent
            self.weight = min(self.weight, float(len(recent)))
        else:
            self.mean += (min(seconds, 2.0 * middle) - self.mean) / self.weight


def _place(size: int) -> int:
    """Sizes below 32 have a knot each; above, there are 16 knots per doubling."""
    if size < 32:
        return size
    shift = size.bit_length() - 5
    return (shift << 4) + (size >> shift)


def isotonic(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The closest sequence that never falls (pool adjacent violators)."""
    blocks: list[tuple[float, float, int]] = []  # mean, weight, length
    for value, weight in zip(values, weights, strict=True):
        mean, total, length = value, weight, 1
        while blocks and blocks[-1][0] >= mean:
            before, w, n = blocks.pop()
            mean = (before * w + mean * total) / (w + total)
            total, length = total + w, length + n
        blocks.append((mean, total, length))
    return [mean for mean, _, length in blocks for _ in range(length)]


def _line(
    sizes: Sequence[float], means: Sequence[float], weights: Sequence[float]
) -> tuple[float, float]:
    """Least squares: (seconds at size 0, seconds per size), neither negative.

    One size alone does not tell them apart: half of its time is taken as fixed.
    """
    if len(sizes) == 1:
        return 0.5 * means[0], 0.5 * means[0] / sizes[0]
    total = x = y = xy = xx = 0.0
    for size, mean, weight in zip(sizes, means, weights, strict=True):
        total += weight
        x += weight * size
        y += weight * mean
        xy += weight * size * mean
        xx += weight * size * size
    spread = xx - x * x / total
    slope = max((xy - x * y / total) / spread, 0.0) if spread > 1e-9 * xx else 0.0
    if y >= slope * x:
        return (y - slope * x) / total, slope
    return 0.0, y / x  # through the origin
