"""The way of small arrays from the host to the device: all that a moment needs in one copy.

Owns nothing between calls. On a CPU the tensors are the arrays themselves. Invariant: on a GPU
nothing waits; the host's memory is pinned, and torch keeps it until the copy is done.
"""

from __future__ import annotations

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
    spans = []
    end = 0
    for array in arrays:
        spans.append((end, end + array.nbytes))
        end += -(-array.nbytes // _ALIGN) * _ALIGN
    packed = torch.empty(end, dtype=torch.uint8, pin_memory=True)
    host = packed.numpy()
    for array, (start, stop) in zip(arrays, spans, strict=True):
        host[start:stop] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    there = packed.to(device, non_blocking=True)
    return [
        there[start:stop].view(torch.from_numpy(array[:0]).dtype).view(array.shape)
        for array, (start, stop) in zip(arrays, spans, strict=True)
    ]
