"""The gate: what an evaluation must say before a version may be published.

Owns the expression "accuracy >= 0.97 and loss < 0.2". Pure: it reads no file and knows no channel.
Invariant: a metric that is missing or is no number never passes.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Self

from trainer.errors import GateRefused

_TESTS = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
    "!=": operator.ne,
}
_CONDITION = re.compile(r"\s*([A-Za-z_][\w./-]*)\s*(>=|<=|==|!=|>|<)\s*(\S+)\s*")


@dataclass(frozen=True, slots=True)
class Condition:
    metric: str
    test: str
    bound: float

    def __str__(self) -> str:
        return f"{self.metric} {self.test} {self.bound:g}"

    def holds(self, value: float) -> bool:
        return math.isfinite(value) and bool(_TESTS[self.test](value, self.bound))


@dataclass(frozen=True, slots=True)
class Gate:
    """Conditions that must all hold; none means that everything passes."""

    conditions: tuple[Condition, ...] = ()

    @classmethod
    def parse(cls, expression: str) -> Self:
        """Raises ValueError, naming the part that is wrong."""
        conditions = []
        for part in re.split(r"\s+and\s+", expression.strip()):
            match = _CONDITION.fullmatch(part)
            try:
                bound = float(match[3]) if match else math.nan
            except ValueError:
                bound = math.nan
            if match is None or not math.isfinite(bound):
                raise ValueError(f"{part!r} is no condition")
            conditions.append(Condition(match[1], match[2], bound))
        return cls(tuple(conditions))

    def __bool__(self) -> bool:
        return bool(self.conditions)

    def __str__(self) -> str:
        return " and ".join(map(str, self.conditions))

    def unknown(self, metrics: Collection[str]) -> list[str]:
        """The metrics that are asked for but not measured."""
        return [c.metric for c in self.conditions if c.metric not in metrics]

    def check(self, evaluation: Mapping[str, float]) -> None:
        """Raises GateRefused, with each condition that does not hold and what was found."""
        failures = []
        for condition in self.conditions:
            if condition.metric not in evaluation:
                measured = ", ".join(sorted(evaluation)) or "nothing"
                failures.append(f"{condition} (not measured; measured: {measured})")
            elif not condition.holds(evaluation[condition.metric]):
                failures.append(f"{condition} (it is {evaluation[condition.metric]:.4g})")
        if failures:
            raise GateRefused(f"the gate asks for {' and '.join(failures)}")
