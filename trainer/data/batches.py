"""Batches: which samples a rank takes at a position, and in what pieces.

Owns the split of the fixed global batch over ranks and micro-batches, and the contract with the
data's class. The state of all this is one integer, the position. Invariant: the pieces of all ranks
together are the global batch, whatever the number of ranks, and their weights sum to one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backends.model import import_class
from trainer.config import DataConfig
from trainer.errors import BadPlugin
from trainer.order import Indices, SampleOrder, share

Batch = dict[str, Tensor]


@runtime_checkable
class Source(Protocol):
    """Samples by index. A mapping of tensors, the samples first, is one too (`Tensors`).

    It may have more: `weights(indices)`, what each sample counts in the mean of the loss (else all
    count the same); `tokens_per_sample`, for what people are shown; `longest`, how many tokens the
    longest has where they differ; `vocabulary`, how many tokens a model of it must know;
    `fingerprint`, which changes with the content, so that a run never goes on with other data.
    """

    def __len__(self) -> int: ...

    def take(self, indices: Tensor) -> Batch:
        """The samples at `indices` (int64, one dimension), stacked in their order."""
        ...


class TrainingData(Protocol):
    """What a class in `data.class` gives; constructed as `Class(**config)` on every rank.

    It may have `files()`, {name: content} to be published beside the weights (a tokenizer's), and
    `counts()`, {argument: number} that a model's class is given where its config leaves them out.
    """

    def train(self) -> Mapping[str, Tensor] | Source: ...

    def held_out(self) -> Mapping[str, Tensor] | Source: ...


class Tensors:
    """A data set that is in memory: one tensor a name, all of the same length."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        lengths = {name: len(tensor) for name, tensor in tensors.items()}
        if not lengths or len(set(lengths.values())) != 1:
            raise BadPlugin(f"tensors of one data set must be equally long; found {lengths}")
        self._tensors = dict(tensors)
        self._length = next(iter(lengths.values()))

    def __len__(self) -> int:
        return self._length

    def take(self, indices: Tensor) -> Batch:
        return {name: tensor.index_select(0, indices) for name, tensor in self._tensors.items()}


@dataclass(frozen=True, slots=True)
class Datasets:
    train: Source
    held_out: Source
    files: Callable[[], Mapping[str, bytes]] = dict
    counts: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def fingerprint(self) -> str:
        """Of the training data; empty where nothing can be said."""
        return str(getattr(self.train, "fingerprint", ""))

    @property
    def tokens_per_sample(self) -> float | None:
        """None where samples are no sequences of tokens."""
        return getattr(self.train, "tokens_per_sample", None)


def open_data(config: DataConfig, root: Path) -> Datasets:
    """Raises BadPlugin, saying what the class lacks."""
    try:
        class_ = import_class(config.class_, root=root)
    except ValueError as error:
        raise BadPlugin(f"data.class: {str(error).removeprefix('model ')}") from error
    try:
        inspect.signature(class_).bind(**config.config)
    except TypeError as error:
        raise BadPlugin(f"data.config: {config.class_} was called with: {error}") from error
    data: TrainingData = class_(**config.config)
    found: list[Source] = []
    for name in ("train", "held_out"):
        method = getattr(data, name, None)
        if not callable(method):
            raise BadPlugin(f"data.class: {config.class_} has no method {name}()")
        value = method()
        source = Tensors(value) if isinstance(value, Mapping) else value
        if not isinstance(source, Source):
            raise BadPlugin(
                f"data.class: {config.class_}.{name}() must return a mapping of tensors, or an "
                f"object with __len__ and take(indices); it returned {type(value).__name__}"
            )
        found.append(source)
    train, held_out = found
    counts = getattr(data, "counts", dict[str, int])()
    return Datasets(train, held_out, getattr(data, "files", dict), counts)


def not_empty(source: Source, what: str) -> Source:
    """Raises BadPlugin for an empty one. Not asked before a source is needed: its length may have
    to wait for a tokenizer in the background."""
    if len(source) < 1:
        raise BadPlugin(f"data.class: there are no {what} samples; the data is too small")
    return source


@dataclass(frozen=True, slots=True)
class Piece:
    """A micro-batch of this rank; `weight` is its share of the global batch's mean."""

    batch: Batch
    weight: float


@dataclass(frozen=True, slots=True)
class Split:
    """How `total` samples are divided: over `ranks`, then over `passes` a rank."""

    total: int
    ranks: int
    passes: int
    cuts: tuple[int, ...] | None = None  # where each rank's samples begin, if not shared evenly

    @classmethod
    def of(cls, total: int, ranks: int, micro_batch: int | None) -> Split:
        largest = -(-total // ranks)
        return cls(total, ranks, 1 if micro_batch is None else -(-largest // micro_batch))

    def share(self, rank: int) -> tuple[int, int]:
        """[start, end) of all samples of `rank`."""
        if self.cuts is not None:
            return self.cuts[rank], self.cuts[rank + 1]
        return share(self.total, self.ranks, rank)

    def parts(self, rank: int) -> list[tuple[int, int]]:
        """[start, end) of each pass of `rank`. All ranks have equally many passes, as their
        collectives must match; where samples run short, a part is empty."""
        start, end = self.share(rank)
        cut = (share(end - start, self.passes, index) for index in range(self.passes))
        return [(start + first, start + last) for first, last in cut]


class Weights:
    """What part of a batch's mean each of its samples is."""

    def __init__(self, before: NDArray[np.float64]) -> None:
        self._before = before  # the sum of the weights of all samples before each

    @classmethod
    def of(cls, source: Source, indices: Indices) -> Weights:
        weigh = getattr(source, "weights", None)
        each = np.ones(len(indices)) if weigh is None else np.asarray(weigh(indices), np.float64)
        return cls(np.concatenate(([0.0], np.cumsum(each))))

    def share(self, start: int, end: int) -> float:
        """Of the samples [start, end)."""
        return float((self._before[end] - self._before[start]) / (self._before[-1] or 1.0))


def pieces(
    source: Source, indices: Indices, split: Split, rank: int, device: torch.device
) -> Iterator[Piece]:
    """This rank's pieces of the samples at `indices`, in order."""
    chosen = torch.from_numpy(indices)
    weights = Weights.of(source, indices)
    for start, end in split.parts(rank):
        # A rank without samples still takes part in the collectives: one sample, of no weight.
        taken = chosen[start:end] if end > start else chosen[:1]
        batch = {
            name: tensor.to(device, non_blocking=True)
            for name, tensor in source.take(taken).items()
        }
        yield Piece(batch, weights.share(start, end))


class TrainBatches:
    """The training samples, by position."""

    def __init__(
        self, source: Source, config: DataConfig, seed: int, rank: int, ranks: int
    ) -> None:
        self.order = SampleOrder(len(not_empty(source, "training")), seed)
        self.split = Split.of(config.batch_size, ranks, config.micro_batch)
        self._source, self._rank = source, rank
        self._micro_batch = config.micro_batch

    def reshare(self, cuts: tuple[int, ...]) -> None:
        """Ranks may then have different numbers of passes: for copies, which meet once a step."""
        size = cuts[self._rank + 1] - cuts[self._rank]
        passes = 1 if self._micro_batch is None else -(-size // self._micro_batch)
        self.split = Split(self.split.total, self.split.ranks, passes, cuts)

    def at(self, position: int, device: torch.device) -> Iterator[Piece]:
        """This rank's pieces of the global batch that starts at `position`."""
        indices = self.order.slice(position, self.split.total)
        return pieces(self._source, indices, self.split, self._rank, device)


class HeldOutBatches:
    """The held-out samples, all of them in their own order, `batch_size` a rank and pass."""

    def __init__(self, source: Source, batch_size: int, rank: int, ranks: int) -> None:
        self.split = Split.of(len(not_empty(source, "held-out")), ranks, batch_size)
        self._source, self._rank = source, rank

    def all(self, device: torch.device) -> Iterator[Piece]:
        indices = np.arange(self.split.total, dtype=np.int64)
        return pieces(self._source, indices, self.split, self._rank, device)
