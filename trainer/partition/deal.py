"""Layers dealt to the stages of a pipeline: by what is known at the start, or anew at a checkpoint.

Owns the measuring of a run's first steps and the decision whether another deal is worth a new
beginning. Tensors keep their names whatever stage they are in, so that is a reload. Invariant: all
ranks deal alike, as all decide on the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from trainer.metrics import Reporter
from trainer.parallel import Parallel
from trainer.partition.clock import Clock
from trainer.partition.layers import Cost, DoesNotFit, Pipeline
from trainer.partition.profile import AFTER, BEFORE, Profile

FIRST, LAST = "first", "last"


@dataclass(frozen=True, slots=True)
class Line:
    """The pipeline: `mine` are this rank's stages of `stages`; `memory` is what a stage may use."""

    layers: int
    stages: int
    mine: tuple[int, ...]
    passes: int
    memory: int | None
    worth: float

    def pipeline(self, profile: Profile) -> Pipeline:
        return profile.pipeline(self.stages, self.passes, self.memory)


def known_counts(folder: Path, line: Line) -> tuple[int, ...] | None:
    """By what was measured in the run before, also with another number of stages."""
    profile = Profile.read(folder, line.layers)
    return None if profile is None else best(line.pipeline(profile))


def best(pipeline: Pipeline) -> tuple[int, ...]:
    """Where the memory is too small for any split, the fastest."""
    try:
        return pipeline.best()
    except DoesNotFit:
        return replace(pipeline, memory=None).best()


class Layers:
    """See `balance.Balance`. `path` is where the model has its layers, `slots` how many moments the
    optimizer has."""

    def __init__(
        self,
        parallel: Parallel,
        path: str,
        line: Line,
        counts: tuple[int, ...],
        slots: int,
        device: torch.device,
        folder: Path,
        reporter: Reporter,
    ) -> None:
        self._line, self._counts, self._folder = line, counts, folder
        self._reporter = reporter
        self._clock = Clock(measured(parallel, path, line), slots, device)
        self._settled = False

    def after_step(self) -> None:
        self._clock.step()

    def at_commit(self, step: int) -> bool:
        if self._settled or not self._clock.done:  # as on every other rank
            return False
        self._settled = True
        everyones: list[Mapping[str, Cost]] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(everyones, with_ends(self._clock.costs(), self._counts))
        profile = Profile.of(everyones, self._line.layers)
        assert profile is not None, "every layer is on some rank"
        if dist.get_rank() == 0:
            profile.write(self._folder)
        pipeline = self._line.pipeline(profile)
        found = best(pipeline)
        before, after = pipeline.seconds(self._counts), pipeline.seconds(found)
        better = after <= (1 - self._line.worth) * before or not pipeline.fits(self._counts)
        changes = found != self._counts and better
        self._say(step, found, changes, before, after, pipeline.fits(found))
        return changes

    def _say(
        self,
        step: int,
        found: tuple[int, ...],
        changes: bool,
        before: float,
        after: float,
        fits: bool,
    ) -> None:
        text = f"step {step}  layers of each stage: {_told(self._counts)}"
        if changes:
            text += f" → {_told(found)}, the slowest {before * 1e3:.3g} → {after * 1e3:.3g} ms"
        if not fits:
            text += "; balance.memory is too small for any split"
        self._reporter.event(
            "layers_dealt",
            text,
            step=step,
            layers=found if changes else self._counts,
            before_s=before,
            after_s=after,
            fits=fits,
        )


def measured(parallel: Parallel, path: str, line: Line) -> dict[str, nn.Module]:
    """The layers of this rank by their number, and the stages at the model's ends."""
    from trainer.stages import Absent

    layers = enumerate(parallel.model.get_submodule(path).children())
    found: dict[str, nn.Module] = {
        str(index): layer for index, layer in layers if not isinstance(layer, Absent)
    }
    for index, stage in zip(line.mine, parallel.objective.children(), strict=True):
        if index == 0:
            found[FIRST] = stage
        if index == line.stages - 1:
            found[LAST] = stage
    return found


def with_ends(costs: Mapping[str, Cost], counts: tuple[int, ...]) -> dict[str, Cost]:
    """The layers' costs, and what the end stages have beside their layers."""
    total = sum(counts)
    found = {name: cost for name, cost in costs.items() if name.isdigit()}
    ends = ((FIRST, BEFORE, range(counts[0])), (LAST, AFTER, range(total - counts[-1], total)))
    for stage, name, members in ends:
        if stage in costs:
            found[name] = _less(costs[stage], [costs[str(index)] for index in members])
    return found


def _less(whole: Cost, parts: list[Cost]) -> Cost:
    """Activations of layers are counted there only."""
    seconds = whole.seconds - sum(part.seconds for part in parts)
    fixed = whole.fixed - sum(part.fixed for part in parts)
    return Cost(max(0.0, seconds), max(0, fixed), whole.activations)


def _told(counts: Iterable[int]) -> str:
    return "+".join(map(str, counts))
