"""What layers were found to cost, kept in the run's folder: a start deals layers by it.

Owns `<run>/layers.json`. Costs are by layer, not by stage, so they serve any number of stages.
Invariant: a file that cannot be understood, or is of another model, is as if there were none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import orjson

from trainer.partition.layers import Cost, Pipeline

FILE = "layers.json"
BEFORE, AFTER = "before", "after"


@dataclass(frozen=True, slots=True)
class Profile:
    layers: tuple[Cost, ...]
    before: Cost
    after: Cost

    @classmethod
    def of(cls, found: Iterable[Mapping[str, Cost]], layers: int) -> Profile | None:
        """From what each rank measured, by number of the layer; None as long as one lacks."""
        everyones: dict[str, list[Cost]] = {}
        for costs in found:
            for name, cost in costs.items():
                everyones.setdefault(name, []).append(cost)
        names = [*map(str, range(layers)), BEFORE, AFTER]
        if any(name not in everyones for name in names):
            return None
        means = [_mean(everyones[name]) for name in names]
        return cls(tuple(means[:-2]), means[-2], means[-1])

    def pipeline(self, stages: int, passes: int, memory: int | None) -> Pipeline:
        return Pipeline(self.layers, self.before, self.after, stages, passes, memory)

    def write(self, folder: Path) -> None:
        temporary = folder / f".{FILE}"
        temporary.write_bytes(orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2))
        temporary.replace(folder / FILE)

    @classmethod
    def read(cls, folder: Path, layers: int) -> Profile | None:
        try:
            found = orjson.loads((folder / FILE).read_bytes())
            costs = tuple(Cost(**cost) for cost in found["layers"])
            profile = cls(costs, Cost(**found[BEFORE]), Cost(**found[AFTER]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return profile if len(costs) == layers else None


def _mean(costs: list[Cost]) -> Cost:
    return Cost(
        fmean(cost.seconds for cost in costs),
        max(cost.fixed for cost in costs),
        max(cost.activations for cost in costs),
    )
