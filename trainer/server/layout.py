"""Tensors as one run of bytes, and back: what weights and contributions look like on the way.

Owns the order (by name) and the offsets, which server and workers derive from the same model.
Invariant: packing and unpacking keep every bit, unless a narrower dtype was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import xxhash
from torch import Tensor

# So that every tensor can be viewed where it lies.
ALIGN = 16


@dataclass(frozen=True, slots=True)
class Slot:
    name: str
    dtype: torch.dtype
    shape: torch.Size
    offset: int
    nbytes: int


class Layout:
    """`narrow` names the tensors that travel as `dtype`."""

    def __init__(
        self,
        like: Mapping[str, Tensor],
        narrow: frozenset[str] = frozenset(),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.slots: list[Slot] = []
        offset = 0
        for name in sorted(like):
            tensor = like[name]
            kind = dtype if name in narrow and tensor.dtype.itemsize > dtype.itemsize else None
            kind = kind or tensor.dtype
            nbytes = tensor.numel() * kind.itemsize
            self.slots.append(Slot(name, kind, tensor.shape, offset, nbytes))
            offset += -(-nbytes // ALIGN) * ALIGN
        self.nbytes = offset

    def pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """uint8 in host memory, a copy."""
        packed = torch.zeros(self.nbytes, dtype=torch.uint8)
        for name, view in self.views(packed):
            view.copy_(tensors[name])
        return packed

    def views(self, packed: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The tensors, sharing memory with `packed`."""
        for slot in self.slots:
            part = packed[slot.offset : slot.offset + slot.nbytes]
            yield slot.name, part.view(slot.dtype).view(slot.shape)


def digest(packed: Tensor) -> str:
    return xxhash.xxh3_128_hexdigest(packed.numpy().data)
