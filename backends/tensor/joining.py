"""Pieces of many frames, joined into the one batch that the model gets.

Owns what `Signature.ragged` means for inputs. Invariant: the rows of the batch are the pieces' rows
in order, and a padded or concatenated input always comes with `<input>_lengths`.

    pad      [rows, …, longest, …]   zeros behind what is shorter
    concat   […, sum of lengths, …]  no batch dimension: rows follow each other along the first
                                     variable one
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from backends.tensor.codec import TORCH, tensor_of
from backends.tensor.job import Piece, variable_axis
from backends.wire import Signature, TensorSpec

# What a model gets: a tensor, or for BYTES a flat list of elements for each row.
Value = Tensor | list[list[bytes]]
Dims = tuple[int, ...]


def join(signature: Signature, pieces: Sequence[Piece]) -> dict[str, Value]:
    """The model's arguments. The pieces' keys are equal."""
    inputs: dict[str, Value] = {}
    for i, spec in enumerate(signature.inputs):
        parts = [piece.parts[i] for piece in pieces]
        if spec.datatype == "BYTES":
            inputs[spec.name] = [row for part in parts for row in part]  # type: ignore[misc]
            continue
        axis = variable_axis(spec)
        if axis is None or signature.ragged == "refuse":
            rows = sum([piece.rows for piece in pieces])
            inputs[spec.name] = tensor_of(parts, spec.datatype, (rows, *pieces[0].dims[i]))  # type: ignore[arg-type]
            continue
        lengths = [piece.dims[i][axis] for piece in pieces for _ in range(piece.rows)]
        inputs[f"{spec.name}_lengths"] = torch.tensor(lengths, dtype=torch.int32)
        build = _padded if signature.ragged == "pad" else _concatenated
        inputs[spec.name] = build(spec, axis, pieces, i)
    return inputs


def _padded(spec: TensorSpec, axis: int, pieces: Sequence[Piece], i: int) -> Tensor:
    dims = pieces[0].dims[i]
    rows = sum([piece.rows for piece in pieces])
    longest = max(piece.dims[i][axis] for piece in pieces)
    shape = (rows, *dims[:axis], longest, *dims[axis + 1 :])
    if all(piece.dims[i][axis] == longest for piece in pieces):
        return tensor_of([piece.parts[i] for piece in pieces], spec.datatype, shape)  # type: ignore[misc]
    batch = torch.zeros(shape, dtype=TORCH[spec.datatype])
    at = 0
    for piece in pieces:
        place = batch.narrow(0, at, piece.rows).narrow(axis + 1, 0, piece.dims[i][axis])
        place.copy_(_alone(spec, piece, i))
        at += piece.rows
    return batch


def _concatenated(spec: TensorSpec, axis: int, pieces: Sequence[Piece], i: int) -> Tensor:
    if axis == 0:
        # Rows and the variable dimension follow each other in memory: nothing is to be moved.
        length = sum(piece.rows * piece.dims[i][0] for piece in pieces)
        shape = (length, *pieces[0].dims[i][1:])
        return tensor_of([piece.parts[i] for piece in pieces], spec.datatype, shape)  # type: ignore[misc]
    rows = [row for piece in pieces for row in _alone(spec, piece, i).unbind(0)]
    if not rows:
        dims = pieces[0].dims[i]
        return torch.empty((*dims[:axis], 0, *dims[axis + 1 :]), dtype=TORCH[spec.datatype])
    return torch.cat(rows, dim=axis)


def _alone(spec: TensorSpec, piece: Piece, i: int) -> Tensor:
    part = piece.parts[i]
    assert isinstance(part, memoryview)
    return tensor_of([part], spec.datatype, (piece.rows, *piece.dims[i]))


def on_device(inputs: Mapping[str, Value], device: torch.device) -> Mapping[str, Value]:
    if device.type == "cpu":
        return inputs
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in inputs.items()
    }
