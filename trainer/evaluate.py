"""Evaluation: the mean loss and metrics over every held-out sample, on all ranks.

Owns one pass. It changes no weight and draws no random number of the training's. Invariant: every
rank returns the same numbers, and each sample counts once.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from trainer.data import HeldOutBatches
from trainer.passes import Passes


class Evaluator:
    def __init__(
        self, passes: Passes, batches: HeldOutBatches, ranks: int, device: torch.device
    ) -> None:
        self._passes, self._batches = passes, batches
        self._ranks, self._device = ranks, device

    def run(self) -> dict[str, float]:
        """Collective."""
        totals = self._passes.evaluate(self._batches.all(self._device))
        names = sorted(totals.values)
        vector = torch.stack([totals.values[name] for name in names])
        if self._ranks > 1:
            dist.all_reduce(vector)
        return dict(zip(names, vector.tolist(), strict=True))
