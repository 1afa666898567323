"""A batch on its way: requests gathered into one EXECUTE, its RESULT cut into their answers.

Pure functions over requests and frames; nothing here knows a socket or a policy. Invariant: the
bytes of a request's tensors are passed on as they are, and an answer holds exactly the rows of its
request.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

from backends.wire import DATATYPES, Buffer, Fault, Frame, WireError, execute_meta
from gateway.errors import GatewayError, ReplicaFault
from gateway.request import Answer, Tensor, TensorRequest


def gather(batch: Sequence[TensorRequest], now: float) -> tuple[dict[str, Any], list[Buffer]]:
    """EXECUTE's meta and data for requests whose keys are equal."""
    heads: list[tuple[str, str, Sequence[int]]] = []
    sizes: list[int] = []
    data: list[Buffer] = []
    shapes: dict[str, list[tuple[int, ...]]] = {}
    rows = [request.rows for request in batch]
    total = sum(rows)
    first = batch[0]
    for at, tensor in enumerate(first.inputs):
        parts = [request.inputs[at] for request in batch]
        tail = tensor.shape[1:]
        if any(part.shape[1:] != tail for part in parts):
            shapes[tensor.name] = [part.shape for part in parts]
            dims = zip(*(part.shape[1:] for part in parts), strict=True)
            tail = tuple(sizes_[0] if len(set(sizes_)) == 1 else -1 for sizes_ in dims)
        heads.append((tensor.name, tensor.datatype, (total, *tail)))
        buffers = [part.data for part in parts]
        sizes.append(sum(map(_nbytes, buffers)))
        data += buffers
    deadlines = [_remaining_ms(request, now) for request in batch]
    meta = execute_meta(
        heads,
        rows,
        sizes=sizes,
        version=first.version,
        deadlines_ms=deadlines,
        shapes=shapes,
    )
    return meta, data


def _nbytes(buffer: Buffer) -> int:
    return buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)


def _remaining_ms(request: TensorRequest, now: float) -> float | None:
    left = request.deadline - now
    return None if left == float("inf") else round(left * 1e3, 1)


def split(
    frame: Frame, batch: Sequence[TensorRequest], replica: str, sent: float
) -> tuple[dict[str, Any], list[Answer | GatewayError]]:
    """RESULT's meta, and the outcome of each request of the batch, in order.

    Raises WireError where the frame does not say one outcome for each.
    """
    meta = frame.json()
    rows, faults = meta["rows"], meta.get("errors") or {}
    if len(rows) != len(batch):
        raise WireError(f"RESULT answers {len(rows)} requests, the batch has {len(batch)}")
    version, compute_us, executed = meta["version"], meta["compute_us"], meta["batch"]
    intake_us = meta["queue_us"]
    columns = [
        _column(head, size, part, rows, (meta.get("shapes") or {}).get(head[0]))
        for head, size, part in _parts(meta, frame.data)
    ]
    outcomes: list[Answer | GatewayError] = []
    by_request: Sequence[tuple[Tensor, ...]]
    by_request = list(zip(*columns, strict=True)) if columns else [()] * len(batch)
    for at, request in enumerate(batch):
        if faults and str(at) in faults:
            outcomes.append(error_of(Fault.from_json(faults[str(at)])))
            continue
        if rows[at] != request.rows:
            raise WireError(f"RESULT has {rows[at]} rows for a request of {request.rows}")
        queue_us = int((sent - request.arrived) * 1e6) + intake_us
        outcomes.append(Answer(by_request[at], version, replica, queue_us, compute_us, executed))
    return meta, outcomes


def error_of(fault: Fault) -> GatewayError:
    return ReplicaFault(fault.status, fault.code, fault.message, param=fault.param)


def _parts(meta: dict[str, Any], data: memoryview) -> Iterator[tuple[Any, int, memoryview]]:
    at = 0
    for head, size in zip(meta["outputs"], meta["sizes"], strict=True):
        yield head, size, data[at : at + size]
        at += size
    if at != len(data):
        raise WireError(f"RESULT names {at} bytes, the frame carries {len(data)}")


def _column(
    head: Sequence[Any],
    size: int,
    data: memoryview,
    rows: Sequence[int],
    shapes: Sequence[Sequence[int]] | None,
) -> list[Tensor]:
    """One output, cut into each request's part."""
    name, datatype, shape = head
    width = DATATYPES[datatype].size
    tensors: list[Tensor] = []
    if width and shapes is None:
        tail = tuple(shape[1:])
        stride = prod(tail) * width
        if size != stride * sum(rows):
            raise WireError(f"output {name}: {size} bytes are not {sum(rows)} rows of {stride}")
        at = 0
        for count in rows:
            end = at + stride * count
            tensors.append(Tensor(name, datatype, (count, *tail), data[at:end]))
            at = end
        return tensors
    at = 0
    for index, count in enumerate(rows):
        own = tuple(shapes[index]) if shapes is not None else (count, *shape[1:])
        end = at + prod(own) * width if width else _end_of_strings(data, at, prod(own))
        tensors.append(Tensor(name, datatype, own, data[at:end]))
        at = end
    if at != size:
        raise WireError(f"output {name}: {size} bytes, its rows take {at}")
    return tensors


def _end_of_strings(data: memoryview, at: int, count: int) -> int:
    """Where `count` BYTES elements that begin at `at` end."""
    for _ in range(count):
        if at + 4 > len(data):
            raise WireError("a BYTES output ends in the middle of an element")
        at += 4 + struct.unpack_from("<I", data, at)[0]
    return at
