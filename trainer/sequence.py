"""Sequences made to fit the mesh: padded where ranks or stages need it, and cut over "cp".

Owns what becomes of a batch's `tokens` and `labels` on their way to the model. Of 2n equal pieces
of a sequence, rank r of n has the r-th and the r-th from behind, so that all ranks have as many
pairs of tokens that see each other (Llama 3, Dubey et al., 2024). Invariant: what is asked for, and
the mean over it, are those of the whole sequences.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from trainer.data import Batch, Piece
from trainer.errors import BadPlugin
from trainer.passes import Passes, Prepare
from trainer.pulse import Totals

# A batch's keys: what a model reads, and what is to be predicted of it unless it is the same.
INPUT, LABELS = "tokens", "labels"
# Instead of labels, where a sequence is cut: what each position is asked for; and how many are in
# all ranks' pieces together, in each row.
TARGETS, ASKED = "targets", "asked"
# A label that counts for nothing (`backends.models.decoder.IGNORE`).
IGNORE = -100


@dataclass(frozen=True, slots=True)
class Fit:
    """`ranks` share a sequence, `parts` cut each of its pieces further (tp), which must be even;
    `longest` is how long all are made, where they must be equally long."""

    ranks: int = 1
    rank: int = 0
    parts: int = 1
    longest: int | None = None

    @property
    def changes(self) -> bool:
        return self.ranks > 1 or self.parts > 1 or self.longest is not None

    def __call__(self, batch: Batch) -> Batch:
        """Raises BadPlugin where there is no sequence to cut."""
        if INPUT not in batch and self.ranks == 1:
            return batch
        if INPUT not in batch or batch[INPUT].ndim != 2:
            raise BadPlugin(
                f"parallel.cp: a sequence is cut, and batches have none as {INPUT!r} [B, T]; set "
                "parallel.cp = 1"
            )
        fitting = self._padded(batch)
        return fitting if self.ranks == 1 else self._cut(fitting)

    def _padded(self, batch: Batch) -> Batch:
        length = batch[INPUT].shape[1]
        unit = self.parts * (2 * self.ranks if self.ranks > 1 else 1)
        missing = -(-max(length, self.longest or 0) // unit) * unit - length
        if not missing:
            return batch
        labels = batch.get(LABELS, batch[INPUT])
        return {
            **batch,
            INPUT: pad(batch[INPUT], (0, missing)),
            LABELS: pad(labels, (0, missing), value=IGNORE),
        }

    def _cut(self, batch: Batch) -> Batch:
        labels = batch.get(LABELS, batch[INPUT])
        targets = pad(labels[:, 1:], (0, 1), value=IGNORE)
        asked = (targets != IGNORE).sum().clamp(min=1)
        own = {
            INPUT: self._mine(batch[INPUT]),
            TARGETS: self._mine(targets),
            ASKED: asked.expand(len(targets)),
        }
        return {name: tensor for name, tensor in batch.items() if name != LABELS} | own

    def _mine(self, whole_BT: Tensor) -> Tensor:
        pieces = whole_BT.chunk(2 * self.ranks, 1)
        return torch.cat([pieces[index] for index in mine(self.rank, self.ranks)], 1)


def mine(rank: int, ranks: int) -> tuple[int, int]:
    """The pieces of a sequence that a rank has."""
    return rank, 2 * ranks - 1 - rank


class Fitted:
    """See `passes.Passes`."""

    def __init__(self, passes: Passes, fit: Fit) -> None:
        self._passes, self._fit = passes, fit

    def train(self, pieces: Iterable[Piece], prepare: Prepare) -> Totals:
        return self._passes.train(self._fitting(pieces), prepare)

    def evaluate(self, pieces: Iterable[Piece]) -> Totals:
        return self._passes.evaluate(self._fitting(pieces))

    def _fitting(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        return (replace(piece, batch=self._fit(piece.batch)) for piece in pieces)
