"""Which part of a tensor this rank holds.

The one place that knows torch's DTensor; everything else sees local tensors and regions. A plain
tensor is a tensor that is held whole. Nothing here communicates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True, slots=True)
class Region:
    """A box in a tensor: where it starts and how large it is, in every dimension."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        return tuple(slice(o, o + n) for o, n in zip(self.offset, self.shape, strict=True))


def is_sharded(tensor: Tensor) -> bool:
    # Importing DTensor costs most of a second; a single rank never needs it.
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """This rank's part, sharing memory with the tensor, outside autograd."""
    if is_sharded(tensor):
        with torch.no_grad():
            return cast("Any", tensor).to_local()  # type: ignore[no-any-return]
    return tensor.detach()


def repeats(tensor: Tensor, dimension: str) -> int:
    """How many ranks along a dimension of the mesh hold the same part of it."""
    mesh = getattr(tensor, "device_mesh", None)
    if mesh is None or dimension not in (mesh.mesh_dim_names or ()):
        return 1
    index = mesh.mesh_dim_names.index(dimension)
    cut = cast("Any", tensor).placements[index].is_shard()
    return 1 if cut else int(mesh.size(index))


def aligned(grad: Tensor, parameter: Tensor) -> Tensor:
    """A gradient laid out as the parameter is: what is still to be added up over ranks is.
    Collective where it is."""
    if is_sharded(grad) and cast("Any", grad).placements != cast("Any", parameter).placements:
        with torch.no_grad():
            return cast("Any", grad).redistribute(  # type: ignore[no-any-return]
                placements=cast("Any", parameter).placements
            )
    return grad


def changed(model: nn.Module) -> None:
    """To be told when parameters were given other values: FSDP may hold what it gathered before."""
    for module in model.modules():
        reshard = getattr(module, "reshard", None)
        if callable(reshard):
            reshard()


def place(tensor: Tensor) -> Region:
    """Where this rank's part lies in the whole tensor."""
    if not is_sharded(tensor):
        return Region((0,) * tensor.ndim, tuple(tensor.shape))
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    sharded = cast("Any", tensor)
    shape, offset = compute_local_shape_and_global_offset(
        tensor.shape, sharded.device_mesh, sharded.placements
    )
    return Region(tuple(offset), tuple(shape))


def wrapper(like: Tensor, mesh: DeviceMesh | None = None) -> Callable[[Tensor], Tensor]:
    """Makes of a local tensor one that is sharded as `like` is, over the dimensions of `mesh` that
    have the same names (None: over its own mesh)."""
    if not is_sharded(like):
        return lambda part: part
    from torch.distributed.tensor import DTensor

    sharded = cast("DTensor", like)
    names = sharded.device_mesh.mesh_dim_names
    if mesh is not None and names is not None and mesh.mesh_dim_names != names:
        mesh = mesh[names]

    def wrap(part: Tensor) -> Tensor:
        return DTensor.from_local(
            part,
            mesh or sharded.device_mesh,
            sharded.placements,
            run_check=False,
            shape=sharded.shape,
            stride=sharded.stride(),
        )

    return wrap
