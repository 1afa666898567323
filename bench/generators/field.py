"""What was found in `llm`: for each kind of prompts and number at once, everybody's figures.

Owns the plans, the samples and their tables. Rates are of whole tasks, from the first byte sent to
the last token; utilisation is of the steps between, by their median. A roof is of the same task.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich import box
from rich.table import Table

from bench.generators import Outcome, Task
from bench.generators.prompts import Prompts
from bench.roofline import Roofline
from bench.series import Series
from bench.tables import number

# Compared between contenders: more would soon differ where two tokens are as likely in bf16.
FIRST_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Plan:
    """Prompts of `shared + own` tokens, answers of `tokens`."""

    name: str
    shared: int
    own: int
    tokens: int
    repetitions: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


PLANS = (
    Plan("own prompts", shared=0, own=128, tokens=64, repetitions=3),
    Plan("shared prefix", shared=256, own=32, tokens=64, repetitions=3),
)
QUICK_PLANS = (
    Plan("own prompts", shared=0, own=64, tokens=24, repetitions=2),
    Plan("shared prefix", shared=128, own=16, tokens=16, repetitions=1),
)


@dataclass(slots=True)
class Cell:
    """One plan with `batch` prompts at once."""

    plan: Plan
    batch: int
    rate: Series
    first: dict[str, list[float]] = field(default_factory=dict)
    gaps: dict[str, list[float]] = field(default_factory=dict)
    cached: dict[str, float] = field(default_factory=dict)
    answers: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, name: str, task: Task, outcome: Outcome) -> None:
        self.rate.values.setdefault(name, []).append(task.total / outcome.seconds)
        self.first.setdefault(name, []).extend(outcome.first)
        self.gaps.setdefault(name, []).extend(outcome.gaps)
        self.answers.setdefault(name, []).extend(outcome.answers)
        self.cached[name] = outcome.cached / sum(map(len, task.prompts))

    def roof(self, roofline: Roofline) -> float:
        """Tokens a second."""
        plan = self.plan
        sizes = {"shared": plan.shared, "own": plan.own, "tokens": plan.tokens}
        return self.batch * plan.tokens / roofline.task_s(self.batch, **sizes)

    def figures(self, name: str, roofline: Roofline) -> dict[str, float]:
        """Empty where it was not measured. Milliseconds; shares of the roof and of the machine."""
        rate = self.rate.median(name)
        if not rate:
            return {}
        first, gaps = sorted(self.first[name]), sorted(self.gaps[name])
        context = self.plan.shared + self.plan.own + self.plan.tokens / 2
        mbu, mfu = roofline.utilisation(self.batch, context, statistics.median(gaps))
        return {
            "tokens_s": rate,
            "of_roof": rate / self.roof(roofline),
            "ttft_p50_ms": 1e3 * percentile(first, 50),
            "ttft_p99_ms": 1e3 * percentile(first, 99),
            "gap_p50_ms": 1e3 * percentile(gaps, 50),
            "gap_p99_ms": 1e3 * percentile(gaps, 99),
            "bandwidth": mbu,
            "flops": mfu,
            "cached": self.cached[name],
        }


class Field:
    def __init__(self, plans: Sequence[Plan], batches: Sequence[int]) -> None:
        self.plans = plans
        self.cells = [
            Cell(plan, batch, Series(f"{plan.name}, {batch} at once", "tokens/s", True))
            for plan in plans
            for batch in batches
        ]

    def cell(self, plan: Plan, batch: int) -> Cell:
        return next(c for c in self.cells if c.plan is plan and c.batch == batch)

    def agreement(self, prompts: Prompts, ours: str, theirs: str) -> float | None:
        """The share of answers that begin alike in both: ours is a text, theirs are tokens."""
        pairs = [
            (mine, prompts.text(tokens[:FIRST_TOKENS]))
            for cell in self.cells
            for mine, tokens in zip(
                cell.answers.get(ours, ()), cell.answers.get(theirs, ()), strict=False
            )
        ]
        return sum(mine.startswith(its) for mine, its in pairs) / len(pairs) if pairs else None

    def tables(self, names: Sequence[str], roofs: Mapping[str, Roofline]) -> list[Table]:
        return [self._table(plan, names, roofs) for plan in self.plans]

    def _table(self, plan: Plan, names: Sequence[str], roofs: Mapping[str, Roofline]) -> Table:
        sizes = f"{plan.own} tokens" if not plan.shared else f"{plan.shared} + {plan.own} tokens"
        title = f"{plan.name} of {sizes}, answers of {plan.tokens}"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("", justify="right")
        table.add_column("ms: p50, p99", no_wrap=True)
        for column in ("tok/s", "roof", "TTFT", "gap"):
            table.add_column(column, justify="right", no_wrap=True)
        for column in ("MBU", "MFU"):
            table.add_column(column, justify="right", style="dim", no_wrap=True)
        for cell in (cell for cell in self.cells if cell.plan is plan):
            for name in names:
                table.add_row(str(cell.batch), name, *_shown(cell.figures(name, roofs[name])))
            table.add_section()
        return table

    def to_json(self, roofs: Mapping[str, Roofline]) -> dict[str, Any]:
        return {
            cell.rate.metric: {
                "roof_tokens_s": {name: cell.roof(roof) for name, roof in roofs.items()},
                **{name: cell.figures(name, roof) for name, roof in roofs.items()},
            }
            for cell in self.cells
        }


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The nearest rank."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def _shown(found: Mapping[str, float]) -> list[str]:
    if not found:
        return ["unavailable"]
    return [
        number(found["tokens_s"]),
        f"{found['of_roof']:.0%}",
        f"{number(found['ttft_p50_ms'])}, {number(found['ttft_p99_ms'])}",
        f"{number(found['gap_p50_ms'])}, {number(found['gap_p99_ms'])}",
        f"{found['bandwidth']:.0%}",
        f"{found['flops']:.0%}",
    ]
