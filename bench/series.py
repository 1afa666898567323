"""Repetitions of a measurement, interleaved: A B C A B C, so that a drift hits all alike.

Owns the order and the statistics of repetitions. A contender that fails in a repetition is out of
it and of the rest, with its reason; the others go on.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Series:
    """One metric: every contender's figure of each repetition, in order."""

    metric: str
    unit: str
    higher_is_better: bool
    values: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def median(self, name: str) -> float | None:
        return statistics.median(self.values[name]) if self.values.get(name) else None

    def spread(self, name: str) -> float | None:
        """(largest - smallest) / median: 0.1 says that repetitions differ by a tenth."""
        median = self.median(name)
        if not median:
            return None
        return (max(self.values[name]) - min(self.values[name])) / median

    def figure(self, name: str) -> float | str:
        """The median, or why there is none."""
        if name in self.failures:
            return f"unavailable: {self.failures[name]}"
        median = self.median(name)
        return "unavailable: it was not measured" if median is None else median

    def to_json(self) -> dict[str, Any]:
        """What `bench compare` reads from a record's detail.repetitions."""
        return {
            "unit": self.unit,
            "higher_is_better": self.higher_is_better,
            "values": self.values,
            "spread": {name: self.spread(name) for name in self.values},
        }


def interleave(
    series: Series,
    names: Sequence[str],
    repetitions: int,
    measure: Callable[[str, int], float],
) -> None:
    """Fill `series` with `measure(name, repetition)`. A MeasureFailed takes a contender out."""
    for repetition in range(repetitions):
        for name in names:
            if name in series.failures:
                continue
            try:
                figure = measure(name, repetition)
            except MeasureFailed as error:
                series.failures[name] = str(error)
                series.values.pop(name, None)
            else:
                series.values.setdefault(name, []).append(figure)


class MeasureFailed(Exception):
    """A contender gave no figure that counts; the message is for the report."""
