"""Batches that no client sent: the warm-up, and the probe that a checkpoint brings.

Owns their making; they go the way of a client's batch, from the bytes of a frame to shares that are
held against the signature. Raises what the model raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import orjson
import torch
from torch import Tensor

from backends.checkpoint import Probe
from backends.claim import ProbeMismatch
from backends.model import ServedModel
from backends.tensor.codec import TORCH, bytes_of, pack_elements
from backends.tensor.job import Job
from backends.tensor.runner import Runner
from backends.wire import Buffer, Frame, Kind, Signature, TensorSpec, execute_meta


def warm_up(runner: Runner, model: ServedModel, signature: Signature) -> None:
    """One row, then a full batch: of the model's `example()`, else of zeros."""
    example = model.example() if hasattr(model, "example") else _zeros(signature)
    runner.attempt(model, signature, _job(signature, example, 1).pieces())
    rows = signature.max_batch_size
    if rows > 1:
        runner.attempt(model, signature, _job(signature, example, rows).pieces())


def check_probe(runner: Runner, model: ServedModel, signature: Signature, probe: Probe) -> None:
    """Raises ProbeMismatch."""
    inputs = {spec.name: _input(spec, probe.inputs[spec.name]) for spec in signature.inputs}
    found, _ = runner.attempt(model, signature, _job(signature, inputs, None).pieces())
    for name, expected in probe.outputs.items():
        value = found[name]
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(np.array(value))
        if not isinstance(value, Tensor):
            same = _text(value) == _text(expected)
        else:
            wanted = torch.tensor(expected, dtype=torch.float64)
            value = value.cpu().to(torch.float64)
            same = value.shape == wanted.shape and torch.allclose(
                value, wanted, rtol=probe.rtol, atol=probe.atol, equal_nan=True
            )
        if not same:
            raise ProbeMismatch(f"output {name!r} is not what it was when the probe was written")


def ramp(shape: tuple[int, ...], dtype: torch.dtype, said: Mapping[str, int]) -> Tensor:
    """Large inputs are not written out: {"step", "modulus"} stands for place · step mod modulus."""
    places = torch.arange(prod(shape)) * said["step"] % said["modulus"]
    return places.to(dtype).reshape(shape)


def _input(spec: TensorSpec, value: Any) -> Any:
    if spec.datatype == "BYTES":
        return value
    if isinstance(value, Mapping):
        return ramp((1, *spec.shape), TORCH[spec.datatype], value)
    return torch.tensor(value, dtype=TORCH[spec.datatype])


def _zeros(signature: Signature) -> dict[str, Any]:
    """One row of zeros, or of empty strings; variable dimensions are 1."""
    example: dict[str, Any] = {}
    for spec in signature.inputs:
        dims = [1 if dim == -1 else dim for dim in spec.shape]
        example[spec.name] = (
            [[b""] * prod(dims)]
            if spec.datatype == "BYTES"
            else torch.zeros((1, *dims), dtype=TORCH[spec.datatype])
        )
    return example


def _job(signature: Signature, inputs: Mapping[str, Any], rows: int | None) -> Job:
    """`inputs` as a request; with `rows`, their first row so many times."""
    heads, data = [], list[Buffer]()
    count = 0
    for spec in signature.inputs:
        value = inputs[spec.name]
        if rows is not None:
            first = value[:1]
            value = (
                first * rows if isinstance(first, list) else first.expand(rows, *first.shape[1:])
            )
        count = len(value)
        shape, packed = _packed(spec, value)
        heads.append((spec.name, spec.datatype, shape))
        data.append(packed)
    meta = execute_meta(heads, [count], sizes=[len(part) for part in data])
    frame = Frame(Kind.EXECUTE, 0, orjson.dumps(meta), memoryview(b"".join(data)))
    return Job(None, frame, signature, arrived=0.0)


def _packed(spec: TensorSpec, value: Any) -> tuple[list[int], Buffer]:
    if isinstance(value, Tensor):
        tensor = value.cpu().contiguous()
        return list(tensor.shape), bytes_of(tensor)
    rows = [_text(row) for row in value]
    dims = list(spec.shape)
    if -1 in dims:
        dims[dims.index(-1)] = len(rows[0]) // max(prod(dim for dim in dims if dim != -1), 1)
    return [len(rows), *dims], pack_elements(one for row in rows for one in row)


def _text(value: Any) -> list[bytes]:
    """BYTES, nested as they come, as one flat list."""
    if isinstance(value, str | bytes):
        return [value.encode() if isinstance(value, str) else value]
    return [one for part in value for one in _text(part)]
