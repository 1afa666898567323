"""The mesh: how many ranks there are in each dimension of parallelism, and which one this is.

Owns the one check that the dimensions multiply to the number of ranks. Later dimensions (pipeline,
tensor) join `MeshPlan`. Invariant: the order is (dp_replicate, dp_shard), the last one the nearest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from trainer.config import ParallelConfig

NAMES = ("dp_replicate", "dp_shard")


@dataclass(frozen=True, slots=True)
class MeshPlan:
    dp_replicate: int
    dp_shard: int

    @classmethod
    def of(cls, config: ParallelConfig, ranks: int) -> MeshPlan:
        """Raises ValueError, saying how to make configuration and ranks agree."""
        asked = {"dp_replicate": config.dp_replicate, "dp_shard": config.dp_shard}
        fixed = 1
        for size in asked.values():
            fixed *= max(size, 1)
        rest, over = divmod(ranks, fixed)
        open_ended = -1 in asked.values()
        if over or (rest != 1 and not open_ended):
            written = " × ".join(f"{name} = {size}" for name, size in asked.items())
            raise ValueError(
                f"{written} does not fit {ranks} rank{'s' * (ranks > 1)}; start "
                f"{'a multiple of ' if open_ended else ''}{fixed} with torchrun --nproc-per-node, "
                "or set one of them to -1"
            )
        return cls(**{name: rest if size == -1 else size for name, size in asked.items()})

    @property
    def ranks(self) -> int:
        return self.dp_replicate * self.dp_shard

    @property
    def data_ranks(self) -> int:
        """Ranks that take different samples."""
        return self.dp_replicate * self.dp_shard

    def __str__(self) -> str:
        sizes = {name: getattr(self, name) for name in NAMES}
        return " × ".join(f"{name} {size}" for name, size in sizes.items() if size > 1) or "1 rank"


@dataclass(frozen=True, slots=True)
class Mesh:
    """The plan with its process groups.

    `shards` is the mesh over which tensors are sharded, copies first where there are any; `host` is
    the same over host memory, where what is staged for a checkpoint lies. Both are None for one
    rank alone and for mere copies.
    """

    plan: MeshPlan
    device: torch.device
    shards: DeviceMesh | None
    host: DeviceMesh | None
    rank: int

    @property
    def data_rank(self) -> int:
        return self.rank

    @property
    def replica(self) -> int:
        """Which copy of the model this rank belongs to."""
        return self.rank // self.plan.dp_shard

    def between(self) -> dist.ProcessGroup | None:
        """The ranks that hold the same part in each replica; None where that is everyone."""
        if self.shards is None or self.plan.dp_replicate == 1:
            return None
        return self.shards.get_group("dp_replicate")

    def within(self) -> dist.ProcessGroup | None:
        """The ranks of this replica; None where that is this one alone, or everyone."""
        if self.shards is None or self.plan.dp_replicate == 1:
            return None
        return self.shards.get_group("dp_shard")

    def one_replica(self) -> Mesh:
        """The same ranks as a replica sees them: as if there were no other."""
        plan = replace(self.plan, dp_replicate=1)
        if self.shards is None or self.host is None or self.plan.dp_replicate == 1:
            return replace(self, plan=plan)
        return replace(self, plan=plan, shards=self.shards["dp_shard"], host=self.host["dp_shard"])


def open_mesh(plan: MeshPlan, device: torch.device, rank: int) -> Mesh:
    """Collective when there is more than one rank."""
    if plan.dp_shard == 1:
        return Mesh(plan, device, None, None, rank)
    sizes = {"dp_replicate": plan.dp_replicate, "dp_shard": plan.dp_shard}
    if plan.dp_replicate == 1:
        del sizes["dp_replicate"]
    names, shape = tuple(sizes), tuple(sizes.values())
    shards = init_device_mesh(device.type, shape, mesh_dim_names=names)
    host = shards if device.type == "cpu" else init_device_mesh("cpu", shape, mesh_dim_names=names)
    return Mesh(plan, device, shards, host, rank)
