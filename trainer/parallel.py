"""Data parallelism: one model over the mesh, and gradients that are the mean over all ranks.

Owns the choice: one rank alone; copies (`replicate`) where dp_shard is 1; else FSDP2, which shards
parameters, gradients and optimizer state over dp_shard and copies over dp_replicate (HSDP). It
never steps, clips or saves. Invariant: after `after_backward` all copies hold the same gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from trainer.mesh import Mesh
from trainer.model import Definition, materialise
from trainer.replicate import Replicated

# A smaller block costs a collective of its own for less than that hides.
UNIT_PARAMETERS = 1 << 18


class Objective(nn.Module):
    """The model as a function from a batch to its loss, so that every wrapper sees one forward."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        return self.model.loss(batch)  # type: ignore[operator, no-any-return]


class GradientSync(Protocol):
    """When gradients travel. Other methods of synchronisation join here."""

    def before_backward(self, last: bool) -> None:
        """Before each micro-batch's backward; `last` is the step's last one."""

    def after_backward(self) -> None:
        """After the last: gradients are then the mean over the ranks."""


class Alone:
    """One rank: there is nothing to do."""

    def before_backward(self, last: bool) -> None:
        pass

    def after_backward(self) -> None:
        pass


class Sharded:
    """FSDP2 reduces by itself during backward."""

    def __init__(self, objective: Any) -> None:
        self._objective = objective

    def before_backward(self, last: bool) -> None:
        self._objective.set_requires_gradient_sync(last)
        self._objective.set_is_last_backward(last)

    def after_backward(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Parallel:
    model: nn.Module
    objective: Objective
    sync: GradientSync


def parallelise(definition: Definition, mesh: Mesh) -> Parallel:
    """Builds the model, shards or copies it as the mesh says, and gives it its first values."""
    model = definition.build()
    objective = Objective(model)
    if mesh.shards is not None:
        _shard(objective, mesh.shards)
    if definition.fills:
        materialise(model, definition.seed, mesh.device)
    elif mesh.shards is None:
        model.to(mesh.device)
    if mesh.shards is not None:
        return Parallel(model, objective, Sharded(objective))
    if mesh.plan.ranks == 1:
        return Parallel(model, objective, Alone())
    trained = [p for p in model.parameters() if p.requires_grad]
    return Parallel(model, objective, Replicated(trained, mesh.plan.ranks))


def _shard(objective: Objective, shards: DeviceMesh) -> None:
    from torch.distributed.fsdp import fully_shard

    for unit in units(objective.model):
        fully_shard(unit, mesh=shards)
    fully_shard(objective, mesh=shards)


def units(model: nn.Module) -> Iterator[nn.Module]:
    """Blocks that are gathered one at a time: the large elements of module lists, inner first."""
    for child in model.children():
        yield from units(child)
    if isinstance(model, nn.ModuleList):
        for block in model:
            if sum(p.numel() for p in block.parameters()) >= UNIT_PARAMETERS:
                yield block
