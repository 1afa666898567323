"""What a model returned, held against its signature and cut into each piece's share.

Owns the judgement on outputs and what `Signature.ragged` means for them. Invariant: a share holds
exactly the rows of its requests, and whatever breaks the signature (name, type, dtype, shape,
number of rows) raises a SignatureBreach that names it. Values are nobody's business: NaN passes.

An output is [batch, …], unless the model also returns `<output>_lengths` (one number a row) for an
output with a variable dimension: then it is joined as inputs are, padded or concatenated, and each
request gets the part that is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backends.errors import SignatureBreach
from backends.tensor.codec import OIP, TORCH, bytes_of, pack_elements
from backends.tensor.job import Piece, variable_axis
from backends.tensor.reply import Share
from backends.wire import Buffer, Signature, TensorSpec

Dims = tuple[int, ...]
# (first row, end row) → the share's dims without batch, and its bytes
Cut = Callable[[int, int], tuple[Dims, Buffer]]


def split(signature: Signature, outputs: Any, pieces: Sequence[Piece]) -> list[list[Share]]:
    """Each piece's shares, in order of its requests. Raises SignatureBreach."""
    rows = sum([piece.rows for piece in pieces])
    _check_names(signature, outputs)
    cuts: list[Cut] = []
    by_request = False
    for spec in signature.outputs:
        value, lengths = outputs[spec.name], _lengths(signature, spec, outputs, rows)
        if spec.datatype == "BYTES":
            cuts.append(_strings(spec, value, rows))
            by_request |= -1 in spec.shape
        elif lengths is None:
            cuts.append(_plain(spec, value, rows))
        else:
            cut = _padded if signature.ragged == "pad" else _concatenated
            cuts.append(cut(spec, _tensor(spec, value), lengths))
            by_request = True
    shares, at = [], 0
    for piece in pieces:
        spans = _requests(piece) if by_request else [(piece.first, piece.last, piece.rows)]
        own = []
        for first, last, count in spans:
            dims, data = zip(*[cut(at, at + count) for cut in cuts], strict=True)
            own.append(Share(first, last, count, dims, data))
            at += count
        shares.append(own)
    return shares


def nothing(signature: Signature, piece: Piece) -> list[Share]:
    """The share of a piece without rows: the model is not asked."""
    dims = tuple(tuple(max(dim, 0) for dim in spec.shape) for spec in signature.outputs)
    return [Share(piece.first, piece.last, 0, dims, (b"",) * len(dims))]


def _requests(piece: Piece) -> list[tuple[int, int, int]]:
    return [(i, i + 1, piece.job.rows[i]) for i in range(piece.first, piece.last)]


def _check_names(signature: Signature, outputs: Any) -> None:
    if not isinstance(outputs, Mapping):
        raise SignatureBreach(f"infer returned {type(outputs).__name__}, not a mapping of outputs")
    names = {spec.name for spec in signature.outputs}
    if outputs.keys() == names:
        return
    for name in sorted(names - outputs.keys()):
        got = ", ".join(map(str, outputs)) or "nothing"
        raise SignatureBreach(f"output {name!r} is missing; infer returned {got}", param=name)
    ragged = signature.ragged != "refuse"
    allowed = {f"{spec.name}_lengths" for spec in signature.outputs if ragged and -1 in spec.shape}
    for name in sorted(outputs.keys() - names - allowed, key=str):
        raise SignatureBreach(
            f"infer returned {name!r}, which its signature does not name", param=str(name)
        )


def _lengths(
    signature: Signature, spec: TensorSpec, outputs: Mapping[str, Any], rows: int
) -> list[int] | None:
    name = f"{spec.name}_lengths"
    if name not in outputs or any(name == other.name for other in signature.outputs):
        return None
    value = outputs[name]
    lengths = value.tolist() if isinstance(value, Tensor | np.ndarray) else list(value)
    if len(lengths) != rows or not all(type(n) is int and n >= 0 for n in lengths):
        raise SignatureBreach(
            f"output {name!r} must hold {rows} whole numbers from 0, one a row", param=name
        )
    return lengths


def _tensor(spec: TensorSpec, value: object) -> Tensor:
    if isinstance(value, np.ndarray):
        value = _from_numpy(spec, value)
    if not isinstance(value, Tensor):
        kind = type(value).__name__
        raise SignatureBreach(
            f"output {spec.name!r} is {kind}, not a tensor or a numpy array", param=spec.name
        )
    if value.dtype is not TORCH[spec.datatype]:
        found = OIP.get(value.dtype, str(value.dtype))
        raise SignatureBreach(
            f"output {spec.name!r} is {found}, its signature says {spec.datatype}", param=spec.name
        )
    if value.requires_grad:
        value = value.detach()
    return value.cpu().contiguous()


def _from_numpy(spec: TensorSpec, array: np.ndarray[Any, Any]) -> Tensor:
    """Its memory as it is where torch can take it: in order and writable."""
    try:
        return torch.from_numpy(np.require(array, requirements=("C", "W")))
    except (TypeError, ValueError) as error:
        raise SignatureBreach(
            f"output {spec.name!r} is a numpy array of {array.dtype}, its signature says "
            f"{spec.datatype}",
            param=spec.name,
        ) from error


def _check_shape(spec: TensorSpec, found: Sequence[int], wanted: Sequence[int]) -> None:
    if len(found) == len(wanted):
        for a, b in zip(found, wanted, strict=True):
            if a != b and b != -1:
                break
        else:
            return
    raise SignatureBreach(
        f"output {spec.name!r} has shape {list(found)}, its signature says {list(wanted)} "
        "in this batch",
        param=spec.name,
    )


def _plain(spec: TensorSpec, value: Any, rows: int) -> Cut:
    tensor = _tensor(spec, value)
    shape = tuple(tensor.shape)
    _check_shape(spec, shape, (rows, *spec.shape))
    memory, dims = bytes_of(tensor), shape[1:]
    stride = len(memory) // rows
    return lambda first, end: (dims, memory[first * stride : end * stride])


def _padded(spec: TensorSpec, tensor: Tensor, lengths: list[int]) -> Cut:
    axis = variable_axis(spec)
    assert axis is not None
    _check_shape(spec, tensor.shape, (len(lengths), *spec.shape))
    if max(lengths) > tensor.shape[axis + 1]:
        raise SignatureBreach(
            f"output {spec.name!r} has shape {list(tensor.shape)}, "
            f"its lengths go up to {max(lengths)}",
            param=spec.name,
        )

    def cut(first: int, end: int) -> tuple[Dims, Buffer]:
        longest = max(lengths[first:end], default=0)
        own = tensor[first:end].narrow(axis + 1, 0, longest).contiguous()
        return tuple(own.shape[1:]), bytes_of(own)

    return cut


def _concatenated(spec: TensorSpec, tensor: Tensor, lengths: list[int]) -> Cut:
    axis = variable_axis(spec)
    assert axis is not None
    ends = list(accumulate(lengths, initial=0))
    wanted = (*spec.shape[:axis], ends[-1], *spec.shape[axis + 1 :])
    _check_shape(spec, tensor.shape, wanted)

    def cut(first: int, end: int) -> tuple[Dims, Buffer]:
        longest = max(lengths[first:end], default=0)
        dims = (*tensor.shape[:axis], longest, *tensor.shape[axis + 1 :])
        own = torch.zeros((end - first, *dims), dtype=tensor.dtype)
        for row in range(first, end):
            part = tensor.narrow(axis, ends[row], lengths[row])
            own[row - first].narrow(axis, 0, lengths[row]).copy_(part)
        return dims, bytes_of(own)

    return cut


def _strings(spec: TensorSpec, value: Any, rows: int) -> Cut:
    """BYTES: a list with an entry a row, each a list of bytes or str, or one of them alone."""
    if not isinstance(value, list | tuple) or len(value) != rows:
        found = f"{len(value)} rows" if isinstance(value, list | tuple) else type(value).__name__
        raise SignatureBreach(
            f"output {spec.name!r} is {found}, its signature says a list of {rows} rows of BYTES",
            param=spec.name,
        )
    packed = [[_element(spec, one) for one in _elements(row)] for row in value]
    dims = [_string_dims(spec, len(row)) for row in packed]

    def cut(first: int, end: int) -> tuple[Dims, Buffer]:
        own = set(dims[first:end])
        if len(own) > 1:
            raise SignatureBreach(
                f"output {spec.name!r} has rows of different lengths in one request",
                param=spec.name,
            )
        shape = own.pop() if own else tuple(max(dim, 0) for dim in spec.shape)
        return shape, pack_elements(one for row in packed[first:end] for one in row)

    return cut


def _elements(row: Any) -> Sequence[Any]:
    return row if isinstance(row, list | tuple) else [row]


def _element(spec: TensorSpec, value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise SignatureBreach(
        f"output {spec.name!r} holds {type(value).__name__}, expected bytes or str", param=spec.name
    )


def _string_dims(spec: TensorSpec, count: int) -> Dims:
    known = prod(dim for dim in spec.shape if dim != -1)
    variable = spec.shape.count(-1)
    if variable == 0 and count == known:
        return spec.shape
    if variable == 1 and known and count % known == 0:
        return tuple(count // known if dim == -1 else dim for dim in spec.shape)
    raise SignatureBreach(
        f"output {spec.name!r} has a row of {count} elements, its signature says "
        f"{list(spec.shape)}",
        param=spec.name,
    )
