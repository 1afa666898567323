"""Model files from sharded weights: each tensor is in one file, each file is one rank's.

Owns the plan (which tensor in which file, which rank writes it) and the gathering over gloo, file
by file, so that a rank holds its shards and one file. Invariant: every rank takes part in every
transfer, also when its own writing has failed: a full disk never leaves the others waiting.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from backends.checkpoint import Failed, Part, Staging
from backends.checkpoint.tensors import finite
from trainer.export import Exported
from trainer.shards import Region, local, place


@dataclass(frozen=True, slots=True)
class Holding:
    """A region of a tensor, and the ranks that hold it (copies, where there are several)."""

    region: Region
    ranks: tuple[int, ...]

    def source(self, owner: int) -> int:
        """Who gives it to `owner`: itself if it can."""
        return owner if owner in self.ranks else self.ranks[0]


@dataclass(frozen=True, slots=True)
class Staged:
    """A whole tensor, and who has which part of it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    holdings: tuple[Holding, ...]


def plan_files(sizes: Mapping[str, int], ranks: int, limit: int) -> list[tuple[str, ...]]:
    """Splits the tensors, in their order, into files of about equal size: one a rank at least,
    as far as there are tensors, and more where a file would exceed `limit`."""
    total = sum(sizes.values())
    count = min(len(sizes), max(ranks, -(-total // limit)))
    files: list[list[str]] = [[] for _ in range(count)]
    before = 0
    for name, size in sizes.items():
        # Where its middle lies; tensors of no size follow the one before.
        files[min(count - 1, (2 * before + size) * count // (2 * total or 1))].append(name)
        before += size
    return [tuple(file) for file in files if file]


class WeightFiles:
    """Gathers and writes the model files of `table`, {name: how it is made of staged tensors}.

    `tensors` are this rank's staged ones. Made once, by all ranks together.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        table: Mapping[str, Exported],
        rank: int,
        ranks: int,
        group: dist.ProcessGroup | None,
        limit: int,
    ) -> None:
        self._table = dict(table)
        needed = {source for exported in table.values() for source in exported.sources}
        self._tensors = {name: t for name, t in tensors.items() if name in needed}
        self._rank, self._ranks, self._group = rank, ranks, group
        self.files = plan_files({n: t.nbytes for n, t in table.items()}, ranks, limit)
        self._staged = _staged(self._tensors, ranks, group)

    def write(self, staging: Staging, *, failed: bool = False) -> list[Part | Failed]:
        """This rank's files; none if it `failed` before, as then only the others need it.
        Collective."""
        parts: list[Part | Failed] = []
        for index, names in enumerate(self.files):
            owner = index % self._ranks
            sources = [source for name in names for source in self._table[name].sources]
            gathered = self._gather(sources, owner)
            if owner != self._rank or failed:
                continue
            try:
                made = {name: self._make(name, gathered) for name in names}
                parts.append(staging.write_shard(index, len(self.files), made))
            except Exception as error:
                parts.append(Failed.of(self._rank, error))
                failed = True
        return parts

    def _make(self, name: str, gathered: Mapping[str, Tensor]) -> Tensor:
        exported = self._table[name]
        made = exported.make([gathered[source] for source in exported.sources])
        if exported.finite and not finite(made):
            raise ValueError(f"{name} holds values that are no finite numbers")
        return made

    def _gather(self, names: Sequence[str], owner: int) -> dict[str, Tensor]:
        """The whole tensors on `owner`, nothing elsewhere."""
        whole = self._room(names) if owner == self._rank else {}
        for source in range(self._ranks):
            moved = list(self._moved(names, source, owner))
            if not moved:
                continue
            if source == self._rank == owner:
                for name, region in moved:
                    whole[name][region.slices].copy_(local(self._tensors[name]))
            elif source == self._rank:
                dist.send(self._pack(moved), dst=owner, group=self._group)
            elif owner == self._rank:
                size = sum(self._nbytes(name, region) for name, region in moved)
                packed = torch.empty(size, dtype=torch.uint8)
                dist.recv(packed, src=source, group=self._group)
                self._unpack(packed, moved, whole)
        return whole

    def _room(self, names: Sequence[str]) -> dict[str, Tensor]:
        if self._ranks == 1:
            return {name: self._tensors[name] for name in names}
        staged = {name: self._staged[name] for name in names}
        return {name: torch.empty(s.shape, dtype=s.dtype) for name, s in staged.items()}

    def _moved(self, names: Sequence[str], source: int, owner: int) -> Iterator[tuple[str, Region]]:
        if self._ranks == 1:
            return
        for name in names:
            for holding in self._staged[name].holdings:
                if holding.source(owner) == source and holding.region.numel:
                    yield name, holding.region

    def _nbytes(self, name: str, region: Region) -> int:
        return region.numel * self._staged[name].dtype.itemsize

    def _pack(self, moved: Sequence[tuple[str, Region]]) -> Tensor:
        parts = [local(self._tensors[name]).reshape(-1).view(torch.uint8) for name, _ in moved]
        return torch.cat(parts)

    def _unpack(
        self, packed: Tensor, moved: Sequence[tuple[str, Region]], whole: Mapping[str, Tensor]
    ) -> None:
        at = 0
        for name, region in moved:
            size = self._nbytes(name, region)
            # A copy of its own: its bytes may not be aligned for the dtype where they arrived.
            part = packed[at : at + size].clone().view(self._staged[name].dtype)
            whole[name][region.slices].copy_(part.view(region.shape))
            at += size


def _staged(
    tensors: Mapping[str, Tensor], ranks: int, group: dist.ProcessGroup | None
) -> dict[str, Staged]:
    """Also of tensors that only other ranks have."""
    mine = {name: (tuple(t.shape), t.dtype, place(t)) for name, t in tensors.items()}
    everyones: list[dict[str, Any]] = [{} for _ in range(ranks)]
    if ranks > 1:
        dist.all_gather_object(everyones, mine, group=group)
    else:
        everyones = [mine]
    found: dict[str, Staged] = {}
    for name in dict.fromkeys(name for theirs in everyones for name in theirs):
        holders: dict[Region, list[int]] = {}
        for rank, theirs in enumerate(everyones):
            if name in theirs:
                shape, dtype, region = theirs[name]
                holders.setdefault(region, []).append(rank)
        holdings = tuple(Holding(region, tuple(held)) for region, held in holders.items())
        found[name] = Staged(shape, dtype, holdings)
    return found
