"""Model files from sharded weights: each tensor is in one file, each file is one rank's.

Owns the plan (which tensor in which file, which rank writes it) and the gathering over gloo, file
by file, so that a rank holds its shards and one file. Invariant: every rank takes part in every
transfer, also when its own writing has failed: a full disk never leaves the others waiting.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from backends.checkpoint import Failed, Part, Staging
from trainer.shards import Region, local, place


@dataclass(frozen=True, slots=True)
class Holding:
    """A region of a tensor, and the ranks that hold it (copies, where there are several)."""

    region: Region
    ranks: tuple[int, ...]

    def source(self, owner: int) -> int:
        """Who gives it to `owner`: itself if it can."""
        return owner if owner in self.ranks else self.ranks[0]


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
    """Gathers and writes the model files. Made once, by all ranks together."""

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        rank: int,
        ranks: int,
        group: dist.ProcessGroup | None,
        limit: int,
        finite: Collection[str] = (),
    ) -> None:
        """`finite` names the tensors that must hold finite numbers only."""
        self._finite = frozenset(finite)
        self._tensors, self._rank, self._ranks, self._group = dict(tensors), rank, ranks, group
        self.files = plan_files({n: t.nbytes for n, t in tensors.items()}, ranks, limit)
        self._holdings = _holdings(tensors, ranks, group)

    def write(self, staging: Staging, *, failed: bool = False) -> list[Part | Failed]:
        """This rank's files; none if it `failed` before, as then only the others need it.
        Collective."""
        parts: list[Part | Failed] = []
        for index, names in enumerate(self.files):
            owner = index % self._ranks
            gathered = self._gather(names, owner)
            if owner != self._rank or failed:
                continue
            try:
                self._refuse_not_finite(gathered)
                parts.append(staging.write_shard(index, len(self.files), gathered))
            except Exception as error:
                parts.append(Failed.of(self._rank, error))
                failed = True
        return parts

    def _refuse_not_finite(self, tensors: Mapping[str, Tensor]) -> None:
        for name in self._finite & tensors.keys():
            if tensors[name].is_floating_point() and not bool(tensors[name].isfinite().all()):
                raise ValueError(f"{name} holds values that are no finite numbers")

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
        return {
            name: torch.empty(self._tensors[name].shape, dtype=self._tensors[name].dtype)
            for name in names
        }

    def _moved(self, names: Sequence[str], source: int, owner: int) -> Iterator[tuple[str, Region]]:
        if self._ranks == 1:
            return
        for name in names:
            for holding in self._holdings[name]:
                if holding.source(owner) == source and holding.region.numel:
                    yield name, holding.region

    def _nbytes(self, name: str, region: Region) -> int:
        return region.numel * self._tensors[name].element_size()

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
            part = packed[at : at + size].clone().view(self._tensors[name].dtype)
            whole[name][region.slices].copy_(part.view(region.shape))
            at += size


def _holdings(
    tensors: Mapping[str, Tensor], ranks: int, group: dist.ProcessGroup | None
) -> dict[str, tuple[Holding, ...]]:
    mine = {name: place(tensor) for name, tensor in tensors.items()}
    everyones: list[dict[str, Region] | None] = [None] * ranks
    if ranks > 1:
        dist.all_gather_object(everyones, mine, group=group)
    else:
        everyones = [mine]
    found: dict[str, tuple[Holding, ...]] = {}
    for name in tensors:
        holders: dict[Region, list[int]] = {}
        for rank, regions in enumerate(everyones):
            assert regions is not None
            holders.setdefault(regions[name], []).append(rank)
        found[name] = tuple(Holding(region, tuple(held)) for region, held in holders.items())
    return found
