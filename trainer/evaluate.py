"""Evaluation: the mean loss and metrics over every held-out sample, on all ranks.

Owns one pass. It changes no weight and draws no random number of the training's. Invariant: every
rank returns the same numbers, and each sample counts once.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from trainer.data import HeldOutBatches
from trainer.pulse import Totals


class Evaluator:
    def __init__(
        self, objective: nn.Module, batches: HeldOutBatches, ranks: int, device: torch.device
    ) -> None:
        self._objective, self._batches = objective, batches
        self._ranks, self._device = ranks, device

    def run(self) -> dict[str, float]:
        """Collective."""
        totals = Totals()
        training = self._objective.training
        self._objective.eval()
        try:
            with torch.no_grad():
                for piece in self._batches.all(self._device):
                    loss, metrics = self._objective(piece.batch)
                    totals.add(loss, metrics, piece.weight)
        finally:
            self._objective.train(training)
        names = sorted(totals.values)
        vector = torch.stack([totals.values[name] for name in names])
        if self._ranks > 1:
            dist.all_reduce(vector)
        return dict(zip(names, vector.tolist(), strict=True))
