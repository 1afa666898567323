"""Where a server's latency leaves its floor as the rate rises: the knee.

Pure. A rate is carried if nearly all of it is answered and the p99 is not far above that of the
first rate that was; the knee is the highest one before the first that is not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.load.spec import LoadReport

# Answered of what was offered, and the p99 against the first one.
CARRIED, GROWN = 0.98, 5.0
# So many rates that are not carried end a ramp: one may be the machine's.
BEYOND = 2
_FORM = re.compile(r"(\d+(?:\.\d+)?):(\d+(?:\.\d+)?)(?::(\d+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Rates in requests a second, latencies in seconds."""

    rate: float
    answered: float
    p50: float
    p99: float
    failed: int
    limit: str | None

    @classmethod
    def of(cls, rate: float, report: LoadReport) -> Point:
        return cls(
            rate=rate,
            answered=report.rate,
            p50=report.latency.percentile(50),
            p99=report.latency.percentile(99),
            failed=report.failed,
            limit=report.limit,
        )

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def carried(self, floor: float) -> bool:
        """`floor`: the p99 of the first rate."""
        return self.answered >= CARRIED * self.rate and self.p99 <= GROWN * floor


def rates(asked: str) -> list[float]:
    """FROM:TO[:STEPS], in equal ratios. Raises ValueError."""
    match = _FORM.fullmatch(asked)
    if match is None:
        raise ValueError(f"--ramp: expected FROM:TO or FROM:TO:STEPS, got {asked!r}")
    low, high, steps = float(match[1]), float(match[2]), int(match[3] or 10)
    if not 0 < low < high or not 2 <= steps <= 1000:
        raise ValueError(f"--ramp: expected a rise in 2 to 1000 steps, got {asked!r}")
    return [low * (high / low) ** (step / (steps - 1)) for step in range(steps)]


def knee(points: Sequence[Point]) -> Point | None:
    """The highest rate that was carried, with all below it; None: not even the first."""
    best = None
    for point in points:
        if not point.carried(points[0].p99):
            break
        best = point
    return best


def passed(points: Sequence[Point]) -> bool:
    last = points[-BEYOND:]
    return len(last) == BEYOND and not any(point.carried(points[0].p99) for point in last)
