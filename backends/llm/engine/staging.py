"""The way of small arrays from the host to the device: all that a moment needs in one copy.

Owns nothing between calls. On a CPU the tensors are the arrays themselves. Invariant: on a GPU
nothing waits; the host's memory is pinned, and torch keeps it until the copy is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Every part begins where any type may.
_ALIGN = 16


def put(device: torch.device, *arrays: NDArray[Any]) -> list[Tensor]:
    """The same values on the device, of the same types."""
    if device.type != "cuda":
        return [torch.from_numpy(array) for array in arrays]
    return unpack(pack(arrays, pinned=True).to(device, non_blocking=True), arrays)


def pack(arrays: Sequence[NDArray[Any]], *, pinned: bool = False) -> Tensor:
    """All their bytes in one tensor."""
    spans = _spans(arrays)
    packed = torch.empty(spans[-1][1], dtype=torch.uint8, pin_memory=pinned)
    host = packed.numpy()
    for array, (start, stop) in zip(arrays, spans, strict=True):
        host[start:stop] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return packed


def unpack(packed: Tensor, like: Sequence[NDArray[Any]]) -> list[Tensor]:
    """Views of it, in the shapes and types of those arrays."""
    return [
        packed[start:stop].view(torch.from_numpy(np.empty(0, array.dtype)).dtype).view(array.shape)
        for array, (start, stop) in zip(like, _spans(like), strict=True)
    ]


def _spans(arrays: Sequence[NDArray[Any]]) -> list[tuple[int, int]]:
    spans, end = [], 0
    for array in arrays:
        start = -(-end // _ALIGN) * _ALIGN
        end = start + array.nbytes
        spans.append((start, end))
    return spans
