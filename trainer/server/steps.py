"""Steps of a run whose samples come in other portions than batches.

Owns the count: a step is a batch's worth of applied samples. Pure. Invariant: each step is reported
once, with the mean of what came since the one before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from trainer.pulse import Reading


class Steps:
    """`samples`: how many were applied before."""

    def __init__(self, batch: int, samples: int) -> None:
        self._batch = batch
        self.step = samples // batch
        self._sums: dict[str, float] = {}
        self._weight = 0

    def add(self, samples: int, metrics: Mapping[str, float]) -> None:
        """Of a contribution, whether it is applied yet or not."""
        self._weight += samples
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + value * samples

    def readings(self, applied: int, norm: float) -> Iterator[Reading]:
        """The steps that are new at `applied` samples."""
        if applied // self._batch == self.step or not self._weight:
            return
        means = {name: value / self._weight for name, value in self._sums.items()}
        loss = means.pop("loss")
        self._sums, self._weight = {}, 0
        while self.step < applied // self._batch:
            self.step += 1
            yield Reading(self.step, loss, means, norm, stop=False, failed=False)
