"""Two records of one scenario: is B better than A, and how sure is that.

Pure. Repetitions are paired in their order; the figure is the geometric mean of their ratios, its
interval the bootstrap's (percentiles of resampled pairs; B. Efron, 1979). Invariant: above 1 means
that B is better, whichever way the metric goes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95
# n pairs that all go one way do so by chance once in 2^(n-1) times: 1 in 16 here.
ENOUGH = 5
OURS, FLOOR = "penstock", "floor"


class CannotCompare(Exception):
    """The message says what does not fit."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """B against A; with enough pairs, `low` to `high` holds the true ratio with 95 % confidence."""

    value: float
    low: float
    high: float
    pairs: int

    @property
    def enough(self) -> bool:
        """Below, the interval of resampled pairs is far too narrow to be believed."""
        return self.pairs >= ENOUGH

    @property
    def verdict(self) -> str:
        if not self.enough:
            return f"{self.pairs} of {ENOUGH} pairs that are needed"
        if self.low > 1:
            return "better"
        return "worse" if self.high < 1 else "no difference shown"


@dataclass(frozen=True, slots=True)
class Row:
    """`who`: a contender, or ours as a share of the floor that ran beside it."""

    metric: str
    who: str
    ratio: Ratio


def paired(
    a: Sequence[float], b: Sequence[float], *, higher_is_better: bool, seed: int = 0
) -> Ratio:
    """Raises CannotCompare when there is no pair, or a figure is not above zero."""
    pairs = min(len(a), len(b))
    if not pairs or min([*a, *b]) <= 0:
        raise CannotCompare("there are no repetitions with figures above zero")
    logs = np.log(np.array(b[:pairs], float)) - np.log(np.array(a[:pairs], float))
    if not higher_is_better:
        logs = -logs
    rng = np.random.default_rng(seed)
    means = logs[rng.integers(0, pairs, (RESAMPLES, pairs))].mean(1)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    value = float(np.exp(logs.mean()))
    return Ratio(value, float(np.exp(low)), float(np.exp(high)), pairs)


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Row]:
    """Every metric and contender that both records have. Raises CannotCompare."""
    if a.get("scenario") != b.get("scenario"):
        raise CannotCompare(f"{a.get('scenario')} and {b.get('scenario')} are different scenarios")
    first, second = _repetitions(a), _repetitions(b)
    rows = []
    for metric in first.keys() & second.keys():
        higher = first[metric]["higher_is_better"]
        values = first[metric]["values"], second[metric]["values"]
        for who in values[0]:
            if values[0][who] and values[1].get(who):
                ratio = paired(values[0][who], values[1][who], higher_is_better=higher)
                rows.append(Row(metric, who, ratio))
        if all(side.get(OURS) and side.get(FLOOR) for side in values):
            # What slows a whole machine slows its floor too: this is the steadier figure.
            shares = [
                [x / y for x, y in zip(side[OURS], side[FLOOR], strict=False)] for side in values
            ]
            ratio = paired(*shares, higher_is_better=higher)
            rows.append(Row(metric, f"{OURS} / {FLOOR}", ratio))
    if not rows:
        raise CannotCompare("the records have no repetitions of the same metric and server")
    return sorted(rows, key=lambda row: row.metric)


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """What else differs, and may be the reason."""
    found = []
    for key in ("cpu", "cores", "memory_gib", "kernel", "gpu"):
        was, now = a["hardware"].get(key), b["hardware"].get(key)
        if was != now:
            found.append(f"{key}: {was} and {now}")
    for key in sorted({*a["versions"], *b["versions"]} - {"penstock"}):
        was, now = a["versions"].get(key), b["versions"].get(key)
        if was != now:
            found.append(f"{key}: {was or 'none'} and {now or 'none'}")
    return found


def _repetitions(record: Mapping[str, Any]) -> Mapping[str, Any]:
    found = record.get("detail", {}).get("repetitions")
    if not isinstance(found, Mapping):
        raise CannotCompare(f"the record of {record.get('scenario')} keeps no repetitions")
    return found
