"""Latencies in buckets whose width grows with them, as in HdrHistogram: bounded memory and error.

Owns counts of nanoseconds. Values below 256 ns are exact; above, each power of two has 128 buckets,
so a percentile is at most 1/128 above a recorded value. Pure; histograms add up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# Buckets of a power of two: 2^7.
BITS = 7
HALF = 1 << BITS
EXACT = 2 * HALF


class Histogram:
    """Counts by bucket; `most` is exact."""

    __slots__ = ("_counts", "count", "most", "total")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.count = 0
        self.total = 0
        self.most = 0

    def record(self, nanoseconds: int) -> None:
        if nanoseconds < EXACT:
            index = nanoseconds if nanoseconds > 0 else 0
        else:
            shift = nanoseconds.bit_length() - BITS - 1
            index = (shift << BITS) + (nanoseconds >> shift)
        self._counts[index] = self._counts.get(index, 0) + 1
        self.count += 1
        self.total += nanoseconds
        if nanoseconds > self.most:
            self.most = nanoseconds

    def add(self, other: Histogram) -> None:
        for index, count in other._counts.items():
            self._counts[index] = self._counts.get(index, 0) + count
        self.count += other.count
        self.total += other.total
        self.most = max(self.most, other.most)

    @property
    def mean(self) -> float:
        """Seconds; not a number when nothing was recorded, as everything below."""
        return self.total / self.count / 1e9 if self.count else float("nan")

    def percentile(self, percent: float) -> float:
        """Seconds that `percent` of the values do not exceed (to a bucket's width)."""
        if not self.count:
            return float("nan")
        rank, seen = max(1.0, self.count * percent / 100), 0
        for index in sorted(self._counts):
            seen += self._counts[index]
            if seen >= rank:
                return min(_top(index), self.most) / 1e9
        return self.most / 1e9

    def share_within(self, seconds: float) -> float:
        """The share of values in buckets that end at or before `seconds`."""
        if not self.count:
            return float("nan")
        limit = seconds * 1e9
        return sum(n for index, n in self._counts.items() if _top(index) <= limit) / self.count

    def to_json(self) -> dict[str, Any]:
        counts = {str(index): count for index, count in sorted(self._counts.items())}
        return {"counts": counts, "total": self.total, "most": self.most}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Histogram:
        made = cls()
        made._counts = {int(index): count for index, count in found["counts"].items()}
        made.count = sum(made._counts.values())
        made.total, made.most = found["total"], found["most"]
        return made

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Histogram:
        made = cls()
        for value in seconds:
            made.record(int(value * 1e9))
        return made

    def milliseconds(self, *percents: float) -> dict[str, float]:
        """{"p50": 0.21, …} as reports have it."""
        return {f"p{percent:g}": self.percentile(percent) * 1e3 for percent in percents}


def _top(index: int) -> int:
    """The largest value of a bucket."""
    if index < EXACT:
        return index
    shift = (index >> BITS) - 1
    return ((index - (shift << BITS) + 1) << shift) - 1
