"""How long a replica takes for a batch: a curve learned from what it did.

Owns one curve, for one (model, version, replica, shape bucket). Sizes are rows, or elements where
the model's batches are budgeted in elements. Never reads a clock; the caller starts a new curve
when a replica reloads or restarts. Invariants: `mean` and `upper` never fall as the size rises; one
stalled batch (a warm-up, a collection) is forgotten as soon as the next observations disagree.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from math import sqrt
from operator import mul

Corners = list[tuple[float, float]]  # (size, seconds), sizes rising

_MEMORY = 32  # observations of a size that its mean stands on
_SHORTEST = 1e-6  # seconds; the wire counts in microseconds, and nothing takes none
_UPPER = 1.645  # standard deviations: the 95th percentile
_NOISE_MEMORY = 128  # observations that the noise stands on
_RECENT = 5  # last observations of a size; their lower median tells a stall from a change
_STALE = 512.0  # observations elsewhere after which a size's own weigh half
_FORGOTTEN = 0.25  # weight below which a size counts as never seen, and is tried again
_LEAN_MOST = 8.0  # observations that the line through all sizes may count as
_FIXED = 16.0  # rows that take as long as the launch of a batch, until observations say better
_LEAN = 0.02  # what that counts: sizes that differ by a seventh of their mean outweigh it
_SPACING = 64  # observations between two rebuilds of a settled curve…
_SOON = 16  # …and of one whose observations surprise; in its youth, a sixteenth of all so far
_DRIFT = 0.01  # relative error that surprises, beyond the noise
_TABLE = 1024  # sizes up to here are looked up in a list


class ServiceCurve:
    """Seconds by size. Before the first observation both curves are 0 everywhere.

    `changes` counts the rebuilds: what was derived from the curve holds while it stays the same.
    """

    def __init__(self) -> None:
        self.changes = 0
        self._knots: dict[int, _Knot] = {}
        self._count = 0
        self._rebuilt = 0  # the count at that time
        self._corners: Corners = [(1.0, 0.0)]  # the curve is straight between them
        self._noise = 0.0  # relative variance of the observations of one size
        self._slope = 0.0  # beyond the last corner
        self._table: list[float] = [0.0]

    @property
    def known(self) -> bool:
        return self._count > 0

    @property
    def deviation(self) -> float:
        """The standard deviation of a batch's time, as a share of its mean."""
        return sqrt(self._noise)

    def mean(self, size: int) -> float:
        """Expected seconds for a batch of `size`."""
        return self._table[size] if size < len(self._table) else self._interpolate(size)

    def upper(self, size: int) -> float:
        """Seconds that one batch of `size` in twenty exceeds."""
        return self.mean(size) * (1.0 + _UPPER * sqrt(self._noise))

    def means(self, step: int, count: int) -> list[float]:
        """`mean` at 0, step, 2 step, … count step."""
        if step == 1 and count < len(self._table):
            return self._table[: count + 1]
        return [0.0] + [self.mean(step * i) for i in range(1, count + 1)]

    def hopes(self, step: int, count: int) -> list[float]:
        """As `means`, but sizes that nobody has tried may take as little as those that were tried
        allow. For judging which size is worth a try, not when it will end."""
        return self._tabulate(_hopeful(self._corners), step * count)[::step]

    def observe(self, size: int, seconds: float) -> None:
        """A batch of `size` took `seconds`. Both are a replica's word: nonsense is brought into
        range, not raised at whoever passes it on."""
        size, seconds = max(size, 1), max(seconds, _SHORTEST)
        self._count += 1
        knot = self._knots.get(place := _place(size))
        new = knot is None
        if knot is None:
            knot = self._knots[place] = _Knot()
        expected = self.mean(size)
        if knot.weight >= _RECENT:
            surprise = min(abs(seconds / knot.mean - 1.0), 0.5)  # a stall is no noise
            self._noise += (surprise * surprise - self._noise) / min(self._count, _NOISE_MEMORY)
        knot.observe(size, seconds, self._count)
        since = self._count - self._rebuilt
        if (
            new
            or since >= _SPACING
            or (
                since >= min(self._count // _SOON, _SOON)
                and abs(knot.mean - expected) > (_DRIFT + sqrt(self._noise)) * expected
            )
        ):
            self._rebuild()

    def _rebuild(self) -> None:
        self.changes += 1
        self._rebuilt = self._count
        for place, knot in list(self._knots.items()):
            if knot.trust(self._count) < _FORGOTTEN and len(self._knots) > 1:
                del self._knots[place]
        knots = sorted(self._knots.values(), key=lambda knot: knot.size)
        sizes = [knot.size for knot in knots]
        means = [knot.mean for knot in knots]
        weights = [knot.trust(self._count) for knot in knots]
        fixed, self._slope = _line(sizes, means, weights)
        # The noisier the observations, and the better a line fits, the more does a size that was
        # seen seldom lean on the line through all.
        line = [fixed + self._slope * size for size in sizes]
        misfit = sum(w * (m / f - 1.0) ** 2 for w, m, f in zip(weights, means, line, strict=True))
        lean = min(self._noise * sum(weights) / max(misfit, 1e-9), _LEAN_MOST)
        leaning = [
            (weight * mean + lean * fit) / (weight + lean)
            for weight, mean, fit in zip(weights, means, line, strict=True)
        ]
        self._corners = list(zip(sizes, isotonic(leaning, weights), strict=True))
        self._table = self._tabulate(self._corners, min(2 * int(sizes[-1]) + 32, _TABLE))

    def _tabulate(self, corners: Corners, reach: int) -> list[float]:
        """The curve at 0 … reach, piece by piece."""
        first = int(corners[0][0])
        table = [0.0] + [self._interpolate(size) for size in range(1, min(first, reach) + 1)]
        for (size, mean), (end, above) in pairwise(corners):
            rise = (above - mean) / (end - size)
            base = mean - rise * size
            table += [base + rise * x for x in range(len(table), min(int(end), reach) + 1)]
        size, mean = corners[-1]
        base = mean - self._slope * size
        table += [base + self._slope * x for x in range(len(table), reach + 1)]
        return table

    def _interpolate(self, size: float) -> float:
        corners = self._corners
        i = bisect_left(corners, (size,))
        if i == len(corners):
            last, mean = corners[-1]
            return mean + (size - last) * self._slope
        end, above = corners[i]
        if i == 0:
            return max(above - (end - size) * self._slope, above * size / end)
        start, mean = corners[i - 1]
        return mean + (size - start) / (end - start) * (above - mean)


class _Knot:
    """What was seen at one size, or in one narrow range of sizes."""

    __slots__ = ("_recent", "mean", "seen", "size", "weight")

    def __init__(self) -> None:
        self.size = self.mean = self.weight = 0.0
        self.seen = 0
        self._recent: list[float] = []

    def trust(self, count: int) -> float:
        """What the mean weighs when `count` observations were made in all."""
        return self.weight * _STALE / (_STALE + count - self.seen)

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
    """Sizes up to 128 have a knot each; above, there are 64 knots per doubling, of sizes up to and
    with a round one: models that pad take a step after it."""
    if size <= 128:
        return size
    shift = (size - 1).bit_length() - 7
    return (shift << 6) + ((size - 1) >> shift) + 1


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


def _hopeful(known: Corners) -> Corners:
    """On a staircase, a step may reach halfway to the next size that was tried, and somewhat beyond
    the last; each try halves what is left. On a convex curve, the slope that follows a size may
    have begun before it; each try goes one further down."""
    corners: Corners = []
    for i, (size, mean) in enumerate(known):
        corners.append((size, mean))
        gap = known[i + 1][0] - size if i + 1 < len(known) else 2.0 + size
        if gap > 1.0:
            corners.append((size + gap / 2.0, mean))
        if gap >= 3.0 and i + 2 < len(known):
            (end, high), (after, above) = known[i + 1 : i + 3]
            before = high - (above - high) / (after - end)
            corners.append((end - 1.0, min(max(before, mean), high - (high - mean) / gap)))
    return corners


def _line(
    sizes: Sequence[float], means: Sequence[float], weights: Sequence[float]
) -> tuple[float, float]:
    """Least squares: (seconds at size 0, seconds per size), neither negative.

    While the sizes seen lie close together, the slope leans on that of a usual model, whose batch
    of `_FIXED` takes twice as long as its launch.
    """
    total = sum(weights)
    x = sum(map(mul, weights, sizes)) / total
    y = sum(map(mul, weights, means)) / total
    spread = sum(map(mul, weights, ((size - x) ** 2 for size in sizes)))
    slope = sum(w * (s - x) * (m - y) for w, s, m in zip(weights, sizes, means, strict=True))
    lean = _LEAN * (x + _FIXED) ** 2
    slope = max((slope + lean * y / (x + _FIXED)) / (spread + lean), 0.0)
    if y >= slope * x:
        return y - slope * x, slope
    return 0.0, y / x  # through the origin
