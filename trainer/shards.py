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
from torch import Tensor

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
    """Makes of a local tensor one that is sharded as `like` is, over `mesh` (None: its own)."""
    if not is_sharded(like):
        return lambda part: part
    from torch.distributed.tensor import DTensor

    sharded = cast("DTensor", like)

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
