"""Forward and backward of one step over this rank's micro-batches, and forward alone.

Owns the weights: each micro-batch counts by its share of the global batch, and what the ranks
report adds up to the global means. `Direct` runs a whole model, `pipeline.Pipelined` a part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn

from trainer.data import Piece
from trainer.pulse import Totals

# What the loop does before the backward of micro-batch `index`.
Prepare = Callable[[int], None]
# Chooses the precision of what is computed within it.
Precision = Callable[[], AbstractContextManager[object]]


class Passes(Protocol):
    def train(self, pieces: Iterable[Piece], prepare: Prepare) -> Totals:
        """Leaves gradients whose mean over the data ranks is the global batch's. Collective."""
        ...

    def evaluate(self, pieces: Iterable[Piece]) -> Totals:
        """The same without gradients, in evaluation mode. Collective."""
        ...


class Direct:
    """The whole model on this rank, or wrapped so that it looks like that.

    `ranks` is over how many the gradients' mean is taken, `repeats` how many ranks compute and
    report the same numbers.
    """

    def __init__(
        self, objective: nn.Module, ranks: int, repeats: int, precision: Precision
    ) -> None:
        self._objective, self._ranks, self._repeats = objective, ranks, repeats
        self._precision = precision

    def train(self, pieces: Iterable[Piece], prepare: Prepare) -> Totals:
        totals = Totals()
        for index, piece in enumerate(pieces):
            prepare(index)
            loss = self._forward(piece, totals)
            # The synchronisation takes the mean over ranks of what is here a weighted part.
            scale = piece.weight * self._ranks
            (loss if scale == 1 else loss * scale).backward()  # type: ignore[no-untyped-call]
        return totals

    def evaluate(self, pieces: Iterable[Piece]) -> Totals:
        totals = Totals()
        training = self._objective.training
        self._objective.eval()
        try:
            with torch.no_grad():
                for piece in pieces:
                    self._forward(piece, totals)
        finally:
            self._objective.train(training)
        return totals

    def _forward(self, piece: Piece, totals: Totals) -> Tensor:
        with self._precision():
            loss, metrics = self._objective(piece.batch)
        totals.add(loss, metrics, piece.weight / self._repeats)
        return loss  # type: ignore[no-any-return]
