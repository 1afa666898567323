"""Wire bytes to torch tensors and back, one copy at most.

Owns the table of dtypes and the alignment rule; knows no signature. Invariant: a tensor made here
owns or borrows its bytes for as long as it lives, and is aligned to its element size: kernels may
assume that.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

import torch

from backends.wire import Buffer

TORCH: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "UINT16": torch.uint16,
    "UINT32": torch.uint32,
    "UINT64": torch.uint64,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "FP16": torch.float16,
    "FP32": torch.float32,
    "FP64": torch.float64,
    "BF16": torch.bfloat16,
}
OIP = {dtype: name for name, dtype in TORCH.items()}
_LENGTH = struct.Struct("<I")


def tensor_of(parts: Sequence[memoryview], datatype: str, shape: Sequence[int]) -> torch.Tensor:
    """The parts' bytes, one after another, as one tensor.

    A single part that may be written to and is aligned is borrowed; anything else is copied once.
    """
    dtype = TORCH[datatype]
    if len(parts) == 1 and not parts[0].readonly and len(parts[0]):
        flat = torch.frombuffer(parts[0], dtype=dtype)
        if flat.data_ptr() % dtype.itemsize == 0:
            return _bools(flat).view(shape) if dtype is torch.bool else flat.view(shape)
    joined = bytearray().join(parts)
    if not joined:
        return torch.empty(shape, dtype=dtype)
    flat = torch.frombuffer(joined, dtype=dtype)
    return _bools(flat).view(shape) if dtype is torch.bool else flat.view(shape)


def _bools(flat: torch.Tensor) -> torch.Tensor:
    """Torch's kernels take any byte but 0 and 1 for something of their own; clients may send it."""
    return flat.view(torch.uint8) != 0


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """A contiguous CPU tensor's memory, row-major; empty for a tensor without elements."""
    if not tensor.numel():
        return memoryview(b"")
    if tensor.dtype is torch.bfloat16:  # numpy has none
        tensor = tensor.view(torch.int16)
    return memoryview(tensor.numpy().data).cast("B")


def pack_elements(elements: Iterable[bytes]) -> bytes:
    """BYTES elements as they travel: u32 length and payload each."""
    packed: list[Buffer] = []
    for element in elements:
        packed += (_LENGTH.pack(len(element)), element)
    return b"".join(packed)
