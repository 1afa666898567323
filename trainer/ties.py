"""Tied weights: one parameter under several names, also where the model is cut.

Owns what each cut would undo: wrappers make a parameter of its own of every name, and a pipeline
has the two names on its first and last rank. Invariant: all names that a rank has are one tensor,
and copies on different ranks get the same gradient, so they stay equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn

from trainer.mesh import group_of
from trainer.model import owners
from trainer.shards import aligned, local

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Owner = tuple[nn.Module, str]


@dataclass(frozen=True, slots=True)
class Ties:
    """The owners of each shared parameter, found while the model was whole."""

    groups: tuple[tuple[Owner, ...], ...]

    @classmethod
    def of(cls, model: nn.Module) -> Ties:
        return cls(tuple(tuple(group) for group in owners(model) if len(group) > 1))

    def tie(self, parts: Sequence[nn.Module]) -> None:
        """Gives all owners the parameter of the first one that is in the parts."""
        for group, source in zip(self.groups, self._sources(parts), strict=True):
            if source is not None:
                for module, name in group:
                    setattr(module, name, getattr(*source))

    def parameters(self, parts: Sequence[nn.Module]) -> list[nn.Parameter]:
        """Those that are in the parts."""
        return [getattr(*source) for source in self._sources(parts) if source is not None]

    def alone(self, module: nn.Module) -> bool:
        """Whether the module has nothing but shared parameters."""
        shared = {id(getattr(*group[0])) for group in self.groups}
        return all(id(parameter) in shared for parameter in module.parameters())

    def _sources(self, parts: Sequence[nn.Module]) -> list[Owner | None]:
        inside = {id(module) for part in parts for module in part.modules()}
        return [
            next((owner for owner in group if id(owner[0]) in inside), None)
            for group in self.groups
        ]


class EndsSync:
    """Adds up the gradients of weights that a pipeline's first and last stage share."""

    def __init__(self, parameters: Sequence[nn.Parameter], group: dist.ProcessGroup) -> None:
        self.parameters = tuple(p for p in parameters if p.requires_grad)
        self._group = group

    def __call__(self) -> None:
        for parameter in self.parameters:
            grad = parameter.grad
            if grad is None:
                grad = torch.zeros_like(parameter)
            parameter.grad = aligned(grad, parameter)
            dist.all_reduce(local(parameter.grad), group=self._group)


def ends_group(whole: DeviceMesh) -> dist.ProcessGroup | None:
    """The group of this rank's pipeline's two ends, if it is one. Collective among all ranks."""
    axis = (whole.mesh_dim_names or ()).index("pp")
    lines = whole.mesh.movedim(axis, -1).reshape(-1, whole.mesh.shape[axis])
    return group_of(lines[:, [0, -1]])
