"""The stages of a pipeline at work: micro-batches travel from rank to rank, gradients back.

Owns the stages of this rank and torch's schedule over them; evaluation goes through the same stages
one micro-batch after the other. Invariant: the sum of gradients and of losses is that of the whole
model over the same micro-batches; only the last stage has a loss, and tells the others its names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.data import Batch, Piece
from trainer.errors import BadPlugin
from trainer.passes import Precision, Prepare
from trainer.pulse import Totals
from trainer.sequence import INPUT, LABELS, TARGETS

SCHEDULES = ("gpipe", "1f1b", "interleaved")
# In the same batch: what each row's micro-batch counts.
WEIGHT = "_weight"
# Room for the sizes of what travels in evaluation, where they change.
MAX_DIMENSIONS = 8


class Stage(nn.Module):
    """One stage as a function of what the stage before gave. The last one gives [weighted loss,
    loss, metrics…], `names` being those of the metrics."""

    def __init__(self, model: nn.Module, last: bool, precision: Precision) -> None:
        super().__init__()
        self.model, self._last, self._precision = model, last, precision
        self.names: tuple[str, ...] = ()

    def forward(self, x: Tensor, **batch: Tensor) -> Tensor:
        with self._precision():
            if not self._last:
                return self.model(x)  # type: ignore[no-any-return]
            weight = batch.pop(WEIGHT)[0]
            loss, metrics = self.model.loss({**batch, INPUT: x})  # type: ignore[operator]
        self.names = tuple(metrics)
        rest = [metric.detach().to(loss.dtype).reshape(()) for metric in metrics.values()]
        return torch.stack([loss * weight, loss.detach(), *rest])


@dataclass(frozen=True, slots=True)
class Line:
    """This rank's place in the pipeline. `mine` are the stages it has, of `count`."""

    group: dist.ProcessGroup
    rank: int
    ranks: int
    mine: tuple[int, ...]
    count: int

    def peer(self, stage: int) -> int:
        """The global rank that has a stage."""
        return dist.get_global_rank(self.group, stage % self.ranks)

    @property
    def has_last(self) -> bool:
        return self.count - 1 in self.mine


class Pipelined:
    """`passes` micro-batches a step; `ranks` and `repeats` as `passes.Direct` has them."""

    def __init__(
        self,
        stages: Sequence[Stage],
        line: Line,
        schedule: str,
        passes: int,
        device: torch.device,
        ranks: int,
        repeats: int,
    ) -> None:
        self._stages, self._line, self._device = tuple(stages), line, device
        self._ranks, self._repeats, self._passes = ranks, repeats, passes
        self._schedule = self._make(schedule)
        self._known: tuple[str, ...] | None = None  # what the last stage reports

    def train(self, pieces: Iterable[Piece], prepare: Prepare) -> Totals:
        chosen = list(pieces)
        prepare(0)
        batch = self._batch(chosen)
        first = batch.pop(INPUT)
        inputs = (first,) if 0 in self._line.mine else ()
        target = first if self._line.has_last else None
        found = self._schedule.step(*inputs, target=target, losses=[], **batch)
        rows = [] if found is None else found.detach().view(len(chosen), -1)
        return self._totals(rows, chosen)

    def evaluate(self, pieces: Iterable[Piece]) -> Totals:
        rows: list[Tensor] = []
        met: list[Piece] = []
        for stage in self._stages:
            stage.eval()
        try:
            with torch.no_grad():
                for piece in pieces:
                    met.append(piece)
                    rows += self._forward(self._batch([piece]))
        finally:
            for stage in self._stages:
                stage.train()
        return self._totals(rows, met)

    def _batch(self, pieces: Sequence[Piece]) -> Batch:
        """The micro-batches as one, as the schedule cuts it again."""
        batch = _joined(pieces)
        if TARGETS not in batch:
            # What travels between stages is in place of the input, so that labels stand alone.
            batch.setdefault(LABELS, batch[INPUT])
        rows = [len(piece.batch[INPUT]) for piece in pieces]
        weights = torch.tensor([piece.weight * self._ranks for piece in pieces])
        batch[WEIGHT] = weights.repeat_interleave(torch.tensor(rows)).to(self._device)
        return batch

    def _make(self, name: str) -> Any:
        from torch.distributed.pipelining import (
            PipelineStage,
            Schedule1F1B,
            ScheduleGPipe,
            ScheduleInterleaved1F1B,
        )

        line = self._line
        stages: list[Any] = [
            PipelineStage(stage, index, line.count, self._device, group=line.group)
            for stage, index in zip(self._stages, line.mine, strict=True)
        ]
        if name == "interleaved":
            return ScheduleInterleaved1F1B(
                stages, self._passes, loss_fn=_weighted, scale_grads=False
            )
        one = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}[name]
        return one(stages[0], self._passes, loss_fn=_weighted, scale_grads=False)

    def _forward(self, batch: Batch) -> list[Tensor]:
        """What the last stage gives, if this rank has it."""
        line, first = self._line, batch.pop(INPUT)
        found: list[Tensor] = []
        for stage, index in zip(self._stages, line.mine, strict=True):
            x = first if index == 0 else self._receive(line.peer(index - 1))
            y = stage(x, **batch)
            if index < line.count - 1:
                self._send(y, line.peer(index + 1))
            else:
                found.append(y)
        return found

    def _send(self, x: Tensor, to: int) -> None:
        head = torch.zeros(MAX_DIMENSIONS + 2, dtype=torch.int64)
        head[0], head[1] = x.ndim, _DTYPES.index(x.dtype)
        head[2 : 2 + x.ndim] = torch.tensor(x.shape)
        dist.send(head.to(self._device), to, group=self._line.group)
        dist.send(x.contiguous(), to, group=self._line.group)

    def _receive(self, source: int) -> Tensor:
        head = torch.zeros(MAX_DIMENSIONS + 2, dtype=torch.int64, device=self._device)
        dist.recv(head, source, group=self._line.group)
        dimensions, kind, *sizes = head.tolist()
        x = torch.empty(sizes[:dimensions], dtype=_DTYPES[kind], device=self._device)
        dist.recv(x, source, group=self._line.group)
        return x

    def _totals(self, rows: Iterable[Tensor], pieces: Sequence[Piece]) -> Totals:
        totals = Totals()
        names = self._stages[-1].names
        for row, piece in zip(rows, pieces, strict=self._line.has_last):
            metrics = dict(zip(names, row[2:], strict=True))
            totals.add(row[1], metrics, piece.weight / self._repeats)
        if self._known is None:
            box = [tuple(totals.values)]
            last = self._line.peer(self._line.count - 1)
            dist.broadcast_object_list(box, src=last, group=self._line.group, device=self._device)
            self._known = box[0]
        for name in self._known:
            zero = torch.zeros((), dtype=torch.float64, device=self._device)
            totals.values.setdefault(name, zero)
        return totals


def _weighted(output: Tensor, _: Tensor) -> Tensor:
    return output[0]


_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _joined(pieces: Sequence[Piece]) -> Batch:
    """Raises BadPlugin where micro-batches differ in shape: stages know the shape in advance."""
    shapes = [{name: tensor.shape for name, tensor in piece.batch.items()} for piece in pieces]
    if any(shape != shapes[0] for shape in shapes):
        raise BadPlugin(
            "parallel.pp: a pipeline needs micro-batches of one shape; choose data whose samples "
            "are equally long, and a data.batch_size that ranks and micro-batches divide"
        )
    if INPUT not in shapes[0]:
        raise BadPlugin(f"parallel.pp: a pipeline needs batches with {INPUT!r}")
    return {name: torch.cat([p.batch[name] for p in pieces]) for name in shapes[0]}
