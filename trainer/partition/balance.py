"""Dividing work anew at checkpoints, by what the ranks measured since; here, samples.

Owns the measuring while it trains and the one exchange at a checkpoint; the choice is a pure
function beside it. Invariant: all ranks divide alike, as all decide on the same numbers.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from statistics import median
from typing import Protocol

import torch
import torch.distributed as dist

from trainer.data import Piece, TrainBatches
from trainer.metrics import Reporter
from trainer.parallel import Parallel
from trainer.partition.samples import cuts, reshare
from trainer.passes import Passes, Prepare
from trainer.pulse import Totals


class Balance(Protocol):
    def after_step(self) -> None:
        """Once a step, on every rank."""

    def at_commit(self, step: int) -> bool:
        """After a checkpoint is begun: whether the loop is to be built anew from it. Collective."""


class Fixed:
    """Nothing is divided anew."""

    def after_step(self) -> None:
        pass

    def at_commit(self, step: int) -> bool:
        return False


class Timed:
    """Passes that know how many samples a second this rank has trained on."""

    def __init__(self, inner: Passes, device: torch.device) -> None:
        self._inner, self._device = inner, device
        self._samples = 0
        self.speeds: list[float] = []

    def train(self, pieces: Iterable[Piece], prepare: Prepare) -> Totals:
        self._samples = 0
        began = self._now()
        totals = self._inner.train(self._counted(pieces), prepare)
        self.speeds.append(self._samples / max(self._now() - began, 1e-9))
        return totals

    def evaluate(self, pieces: Iterable[Piece]) -> Totals:
        return self._inner.evaluate(pieces)

    def _counted(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            self._samples += len(next(iter(piece.batch.values())))
            yield piece

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class Samples:
    """Samples to copies of the model by speed, from the next step on."""

    def __init__(
        self, timed: Timed, batches: TrainBatches, ranks: int, worth: float, reporter: Reporter
    ) -> None:
        self._timed, self._batches, self._ranks = timed, batches, ranks
        self._worth, self._reporter = worth, reporter

    def after_step(self) -> None:
        pass

    def at_commit(self, step: int) -> bool:
        # The first may have chosen kernels and found its memory.
        mine = median(self._timed.speeds[1:] or self._timed.speeds)
        self._timed.speeds.clear()
        speeds: list[float] = [0.0] * self._ranks
        dist.all_gather_object(speeds, mine)
        split = self._batches.split
        current = [end - start for start, end in map(split.share, range(self._ranks))]
        found = reshare(current, speeds, self._worth)
        if found is not None:
            self._batches.reshare(cuts(found))
            text = f"step {step}  samples of each rank: {', '.join(map(str, found))}"
            self._reporter.event("samples_shared", text, step=step, samples=found, speeds=speeds)
        return False


def time_samples(
    parallel: Parallel, batches: TrainBatches, ranks: int, worth: float, reporter: Reporter
) -> tuple[Parallel, Samples]:
    """The passes to train with, which are measured, and what divides by that."""
    device = next(parallel.model.parameters()).device
    timed = Timed(parallel.passes, device)
    return replace(parallel, passes=timed), Samples(timed, batches, ranks, worth, reporter)
