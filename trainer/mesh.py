"""The mesh: how many ranks there are in each dimension of parallelism, and which one this is.

Owns the one check that the dimensions multiply to the number of ranks. The ranks of cp share a copy
of the model as those of dp_shard do: to FSDP they are one dimension, "dp_shard". Invariant: the
order is (pp, dp_replicate, dp_shard, cp, tp), the last one the nearest: its ranks talk most.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from trainer.config import ParallelConfig

NAMES = ("pp", "dp_replicate", "dp_shard", "cp", "tp")


@dataclass(frozen=True, slots=True)
class MeshPlan:
    dp_replicate: int
    dp_shard: int
    pp: int = 1
    tp: int = 1
    cp: int = 1

    @classmethod
    def of(cls, config: ParallelConfig, ranks: int) -> MeshPlan:
        """Raises ValueError, saying how to make configuration and ranks agree."""
        asked = {name: getattr(config, name) for name in NAMES}
        fixed = 1
        for size in asked.values():
            fixed *= max(size, 1)
        rest, over = divmod(ranks, fixed)
        open_ended = -1 in asked.values()
        if over or (rest != 1 and not open_ended):
            told = {name: n for name, n in asked.items() if n != 1 or name.startswith("dp_")}
            written = " × ".join(f"{name} = {size}" for name, size in told.items())
            raise ValueError(
                f"{written} does not fit {ranks} rank{'s' * (ranks > 1)}; start "
                f"{'a multiple of ' if open_ended else ''}{fixed} with torchrun --nproc-per-node, "
                "or set one of them to -1"
            )
        return cls(**{name: rest if size == -1 else size for name, size in asked.items()})

    @property
    def ranks(self) -> int:
        return self.pp * self.dp_replicate * self.shard_ranks * self.tp

    @property
    def cuts(self) -> bool:
        """Whether no rank computes with the whole model."""
        return self.pp > 1 or self.tp > 1

    @property
    def data_ranks(self) -> int:
        """Ranks that take different samples."""
        return self.dp_replicate * self.dp_shard

    @property
    def shard_ranks(self) -> int:
        """Ranks that share one copy of a stage, by FSDP."""
        return self.dp_shard * self.cp

    @property
    def replica_ranks(self) -> int:
        return self.ranks // self.dp_replicate

    def __str__(self) -> str:
        sizes = {name: getattr(self, name) for name in NAMES}
        return " × ".join(f"{name} {size}" for name, size in sizes.items() if size > 1) or "1 rank"


@dataclass(frozen=True, slots=True)
class Mesh:
    """The plan with its process groups.

    `shards` is the mesh of FSDP, copies first where there are any; None for one rank alone and for
    mere copies. `whole` has all dimensions, `host` is the same over host memory, where what is
    staged for a checkpoint lies; None where no tensor is cut. `unseen` counts replicas that train
    their share of each batch beside the ranks of this mesh. `sequence` are the ranks that share
    each sequence, `one` those of this rank's replica where there are several and they cut layers.
    """

    plan: MeshPlan
    device: torch.device
    shards: DeviceMesh | None
    host: DeviceMesh | None
    rank: int
    whole: DeviceMesh | None = None
    unseen: int = 1
    sequence: dist.ProcessGroup | None = None
    one: dist.ProcessGroup | None = None

    @property
    def data_rank(self) -> int:
        """Among the ranks that take different samples."""
        return self.rank // (self.plan.tp * self.plan.cp) % self.plan.data_ranks

    @property
    def sequence_rank(self) -> int:
        """Among the ranks that share a sequence."""
        return self.rank // self.plan.tp % self.plan.cp

    @property
    def stage_rank(self) -> int:
        """The place in the pipeline."""
        return self.rank // (self.plan.ranks // self.plan.pp)

    @property
    def replica(self) -> int:
        """Which copy of the model this rank belongs to."""
        return self.data_rank // self.plan.dp_shard

    def between(self) -> dist.ProcessGroup | None:
        """The ranks that hold the same part in each replica; None where that is everyone."""
        if self.shards is None or self.plan.dp_replicate == 1:
            return None
        return self.shards.get_group("dp_replicate")

    def within(self) -> dist.ProcessGroup | None:
        """The ranks of this replica; None where that is this one alone, or everyone."""
        if self.shards is None or self.plan.dp_replicate == 1:
            return None
        return self.one or self.shards.get_group("dp_shard")

    def one_replica(self) -> Mesh:
        """The same ranks as a replica sees them: as if there were no other."""
        plan = replace(self.plan, dp_replicate=1)
        inner = plan.shard_ranks * plan.tp
        rank = self.stage_rank * inner + self.rank % inner
        seen = replace(self, plan=plan, rank=rank, unseen=self.plan.dp_replicate)
        if self.shards is None or self.plan.dp_replicate == 1:
            return seen
        return replace(seen, shards=self.shards["dp_shard"] if self.plan.shard_ranks > 1 else None)


def open_mesh(plan: MeshPlan, device: torch.device, rank: int) -> Mesh:
    """Collective when there is more than one rank."""
    if plan.shard_ranks == 1 and not plan.cuts:
        return Mesh(plan, device, None, None, rank)
    sizes = {
        "pp": plan.pp,
        "dp_replicate": plan.dp_replicate,
        "dp_shard": plan.shard_ranks,
        "tp": plan.tp,
    }
    sizes = {name: size for name, size in sizes.items() if size > 1 or name == "dp_shard"}
    names, shape = tuple(sizes), tuple(sizes.values())
    whole = init_device_mesh(device.type, shape, mesh_dim_names=names)
    host = whole if device.type == "cpu" else init_device_mesh("cpu", shape, mesh_dim_names=names)
    shards = None
    if plan.dp_replicate * plan.shard_ranks > 1:
        shards = whole[tuple(name for name in names if name.startswith("dp_"))]
    ranks = torch.arange(plan.ranks)
    sequence = one = None
    if plan.cp > 1:
        sequence = group_of(ranks.view(-1, plan.cp, plan.tp).mT.reshape(-1, plan.cp))
    if plan.dp_replicate > 1 and plan.cuts:
        # (pp, dp_replicate, the rest)
        rest = ranks.view(plan.pp, plan.dp_replicate, -1)
        one = group_of(rest.movedim(1, 0).reshape(plan.dp_replicate, -1))
    return Mesh(plan, device, shards, host, rank, whole, 1, sequence, one)


def group_of(rows: torch.Tensor) -> dist.ProcessGroup | None:
    """The group of the row that has this rank, if one does. Collective among all ranks."""
    found = None
    for row in rows.tolist():
        group = dist.new_group(row)
        if dist.get_rank() in row:
            found = group
    return found
