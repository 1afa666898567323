"""The safetensors format: dtypes, header, and a tensor's bytes without a copy.

Owns layout only: it opens no file. Invariant: a header that `layout` makes describes tensors that
lie back to back, each aligned to its element, in the order in which the file is to be written.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import torch
from torch import Tensor

from backends.checkpoint.errors import BadRecord

# safetensors' name → torch's dtype. An element of torch's F4 is two of the format's: `header` says
# so; everything else here counts as torch does.
DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F4": torch.float4_e2m1fn_x2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# The format's own limit on the header.
MAX_HEADER = 100_000_000


def dtype_name(dtype: torch.dtype | str) -> str:
    """safetensors' name. Raises BadRecord for a dtype that the format does not have."""
    name = dtype if isinstance(dtype, str) else _NAMES.get(dtype, "")
    if name not in DTYPES:
        raise BadRecord(f"dtype {dtype} cannot be stored; cast to one of {', '.join(DTYPES)}")
    return name


def header(shape: Sequence[int], dtype: str, start: int, end: int) -> dict[str, Any]:
    """A tensor's entry in a file's header; bytes count from the header's end."""
    dims = list(shape)
    if dtype == "F4":
        dims[-1] *= 2
    return {"dtype": dtype, "shape": dims, "data_offsets": [start, end]}


def nbytes(shape: Sequence[int], dtype: str) -> int:
    return math.prod(shape) * DTYPES[dtype].itemsize


def check(name: str, tensor: Tensor) -> None:
    """Raises BadRecord unless the tensor can be written as it is, saying what to do instead."""
    if sys.byteorder != "little":
        raise BadRecord("safetensors files are little-endian; this machine is not")
    if name == "__metadata__" or not name:
        raise BadRecord(f"a tensor cannot be named {name!r}")
    if hasattr(tensor, "full_tensor"):
        raise BadRecord(f"{name} is sharded; gather it with full_tensor() first")
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise BadRecord(f"{name} has layout {tensor.layout}; make it dense first")
    if tensor.is_meta:
        raise BadRecord(f"{name} has no data (device meta)")
    try:
        dtype = dtype_name(tensor.dtype)
    except BadRecord as error:
        raise BadRecord(f"{name}: {error}") from None
    if dtype == "F4" and not tensor.ndim:
        raise BadRecord(f"{name} has dtype F4 and no dimension; give it one")


def host_bytes(tensor: Tensor) -> memoryview:
    """The tensor's bytes in host memory, row-major; copies only what is elsewhere or strided."""
    plain = tensor.detach().resolve_conj().resolve_neg().to("cpu").contiguous()
    if not plain.numel():
        return memoryview(b"")
    return plain.reshape(-1).view(torch.uint8).numpy().data


def layout(tensors: Mapping[str, Tensor]) -> tuple[bytes, list[tuple[str, int, int]]]:
    """The file's head (length and header) and, in writing order, (name, start, end) in the file.

    Wider elements come first, as the format's own writer does it: every tensor stays aligned.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at, spans = 0, []
    for name in order:
        tensor = tensors[name]
        dtype, shape = dtype_name(tensor.dtype), list(tensor.shape)
        end = at + nbytes(shape, dtype)
        table[name] = header(shape, dtype, at, end)
        spans.append((name, at, end))
        at = end
    text = orjson.dumps(table)
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise BadRecord(
            f"a header of {len(text)} bytes is over the format's limit; use more shards"
        )
    head = len(text).to_bytes(8, "little") + text
    return head, [(name, start + len(head), end + len(head)) for name, start, end in spans]


def empty(shape: Sequence[int], dtype: str) -> Tensor:
    return torch.empty(tuple(shape), dtype=DTYPES[dtype])


def finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite: one pass that makes nothing, where `isfinite` makes a
    mask at a tenth of the speed."""
    kind = tensor.dtype
    if kind == torch.float4_e2m1fn_x2 or not (kind.is_floating_point or kind.is_complex):
        return True
    plain = torch.view_as_real(tensor.resolve_conj()) if kind.is_complex else tensor.detach()
    if not plain.numel():
        return True
    # A NaN is the least and the most of all.
    ends = torch.aminmax(plain.float() if kind.itemsize == 1 else plain)
    return all(math.isfinite(end.item()) for end in ends)
