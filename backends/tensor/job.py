"""An EXECUTE frame as work: checked against a signature, cut into pieces that can be joined.

Owns the reading of the frame's meta and the arithmetic of its bytes; loads no torch, so that it
runs on the socket thread. Invariant: a `Job` that exists names exactly the bytes that the frame
carries; anything else is a BadFrame that says which field is wrong.

A piece is a run of the job's requests with one shape per input; pieces with equal keys can be
executed together.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable, Sequence
from math import prod
from typing import Any, NamedTuple

from backends.errors import BadFrame
from backends.wire import DATATYPES, Frame, Signature, TensorSpec, WireError, length_bucket

_LENGTH = struct.Struct("<I")
Dims = tuple[int, ...]
# What reading a meta of the wrong form raises.
_NOT_AS_SAID = (WireError, LookupError, TypeError, ValueError, AttributeError)
# One input of a piece: its bytes, or for BYTES a flat list of elements for each row.
Part = memoryview | list[list[bytes]]


class Column(NamedTuple):
    """One input of a frame. `shapes`: each request's own, batch first, where they differ."""

    spec: TensorSpec
    dims: Dims
    data: memoryview
    width: int  # bytes of an element, 0 for BYTES
    shapes: list[Dims] | None


class Piece(NamedTuple):
    """Requests `first` to `last` of `job`; `dims` and `parts` per input, `dims` without batch."""

    job: Job
    first: int
    last: int
    rows: int
    dims: tuple[Dims, ...]
    parts: tuple[Part, ...]
    key: Hashable


class Job:
    """`owner` is the connection that waits for the answer to `id`.

    `expires` is when the first of its requests does (seconds, as `arrived`). `limit` is the
    signature's max_batch_size. `key`: jobs with equal keys may be joined. `done`: the terminal
    answer went out; only the socket thread sets it.
    """

    __slots__ = (
        "arrived",
        "columns",
        "data",
        "deadlines",
        "done",
        "expires",
        "id",
        "key",
        "limit",
        "meta",
        "owner",
        "pin",
        "rows",
        "signature",
        "total",
    )

    def __init__(self, owner: Any, frame: Frame, signature: Signature, arrived: float) -> None:
        """Raises BadFrame."""
        self.owner, self.id, self.data, self.arrived = owner, frame.id, frame.data, arrived
        self.done = False
        try:
            self._read(frame.json())
        except _NOT_AS_SAID as error:
            raise _wrong(error) from error
        self.fit(signature)

    def _read(self, meta: Any) -> None:
        self.meta = meta
        self.rows: list[int] = meta["rows"]
        self.total = sum(self.rows)
        if not isinstance(self.total, int) or min(self.rows, default=0) < 0:
            raise BadFrame("rows are whole numbers from 0", param="rows")
        self.pin: str | None = meta.get("version")
        if not isinstance(self.pin, str | None):
            raise BadFrame("version must be a string", param="version")
        self.deadlines: list[float | None] = meta.get("deadlines_ms") or []
        if self.deadlines and len(self.deadlines) != len(self.rows):
            raise BadFrame(f"{len(self.deadlines)} deadlines_ms, {len(self.rows)} requests")
        soonest = _soonest(self.deadlines)
        self.expires = float("inf") if soonest is None else self.arrived + soonest / 1e3

    def fit(self, signature: Signature) -> None:
        """Read the frame by this signature. Raises BadFrame."""
        self.signature, self.limit = signature, signature.max_batch_size
        if self.total > self.limit:
            over = f"{self.total} rows are over the model's max_batch_size of {self.limit}"
            raise BadFrame(over, param="rows")
        try:
            self.columns = _columns(self, signature)
            heads = tuple([_key_of(column.dims, column.spec, signature) for column in self.columns])
            self.key = (self.pin, id(signature), heads)
        except _NOT_AS_SAID as error:
            raise _wrong(error) from error

    def expired(self, now: float) -> list[int]:
        """The requests that must not be started any more."""
        if now < self.expires:
            return []
        waited_ms = (now - self.arrived) * 1e3
        return [
            i for i, left in enumerate(self.deadlines) if left is not None and left <= waited_ms
        ]

    def pieces(self, without: Sequence[int] = ()) -> list[Piece]:
        """Every request but those in `without`. Raises BadFrame on malformed BYTES."""
        columns = self.columns
        if without or any(column.shapes is not None for column in columns):
            gone = set(without)
            return [piece for piece in self.each() if piece.first not in gone]
        parts = tuple(
            column.data if column.width else _rows_of(column, self.total) for column in columns
        )
        dims = tuple(column.dims for column in columns)
        return [Piece(self, 0, len(self.rows), self.total, dims, parts, self.key)]

    def each(self) -> list[Piece]:
        """One piece for each request."""
        shares = [_shares(column, self.rows) for column in self.columns]
        pieces = []
        for i, rows in enumerate(self.rows):
            dims = tuple(share[i][0] for share in shares)
            heads = tuple(
                _key_of(own, column.spec, self.signature)
                for own, column in zip(dims, self.columns, strict=True)
            )
            parts = tuple(share[i][1] for share in shares)
            key = (self.pin, id(self.signature), heads)
            pieces.append(Piece(self, i, i + 1, rows, dims, parts, key))
        return pieces


def requests_of(piece: Piece) -> list[Piece]:
    """A piece for each request of this one."""
    if piece.last - piece.first == 1:
        return [piece]
    return piece.job.each()[piece.first : piece.last]


def _wrong(error: Exception) -> BadFrame:
    return BadFrame(f"EXECUTE's meta is wrong: {type(error).__name__}: {error}")


def _soonest(deadlines: Sequence[float | None]) -> float | None:
    try:
        return min(deadlines, default=None)  # type: ignore[type-var]
    except TypeError:  # some have none
        return min((left for left in deadlines if left is not None), default=None)


def variable_axis(spec: TensorSpec) -> int | None:
    """The first variable dimension, counted without the batch: where ragged inputs are joined."""
    return spec.shape.index(-1) if -1 in spec.shape else None


def _key_of(dims: Dims, spec: TensorSpec, signature: Signature) -> Dims:
    axis = variable_axis(spec)
    if axis is None or signature.ragged == "refuse":
        return dims
    # Rows of unlike length are not padded to each other; what is joined end to end may be any.
    free = -1 - length_bucket(dims[axis]) if signature.ragged == "pad" else -1
    return (*dims[:axis], free, *dims[axis + 1 :])


def _columns(job: Job, signature: Signature) -> tuple[Column, ...]:
    meta, at = job.meta, 0
    ragged = meta.get("shapes") or {}
    found: dict[str, Column] = {}
    specs = {spec.name: spec for spec in signature.inputs}
    for (name, datatype, shape), size in zip(meta["inputs"], meta["sizes"], strict=True):
        spec = specs.get(name)
        if spec is None or name in found:
            wrong = "stands twice" if name in found else f"is not one of {', '.join(specs)}"
            raise BadFrame(f"input {name!r} {wrong}", param=name)
        if datatype != spec.datatype:
            raise BadFrame(f"input {name!r} is {datatype}, expected {spec.datatype}", param=name)
        data = job.data[at : at + size]
        if len(data) != size:
            raise BadFrame(f"input {name!r} has {size} bytes, {len(data)} are left", param="sizes")
        at += size
        found[name] = _column(spec, shape, data, ragged.get(name), job)
    if at != len(job.data):
        raise BadFrame(f"sizes name {at} bytes, the frame carries {len(job.data)}", param="sizes")
    missing = [name for name in specs if name not in found]
    if missing:
        raise BadFrame(f"input {missing[0]!r} is missing", param=missing[0])
    return tuple(found[name] for name in specs)


def _column(
    spec: TensorSpec, shape: Sequence[int], data: memoryview, shapes: Any, job: Job
) -> Column:
    name, width = spec.name, DATATYPES[spec.datatype].size
    if shape[0] != job.total:
        raise BadFrame(f"input {name!r} has {shape[0]} rows, rows name {job.total}", param=name)
    if shapes is None:
        dims = tuple(shape[1:])
        _check_dims(spec, dims)
        if width and prod(dims) * job.total * width != len(data):
            raise BadFrame(
                f"input {name!r}: {len(data)} bytes are not {spec.datatype} {list(shape)}",
                param=name,
            )
        return Column(spec, dims, data, width, None)
    own = [tuple(one) for one in shapes]
    if len(own) != len(job.rows) or any(
        one[0] != rows for one, rows in zip(own, job.rows, strict=True)
    ):
        raise BadFrame(f"shapes of input {name!r} do not follow rows", param=name)
    for one in own:
        _check_dims(spec, one[1:])
    if width and sum(map(prod, own)) * width != len(data):
        raise BadFrame(f"input {name!r}: {len(data)} bytes are not what shapes say", param=name)
    return Column(spec, own[0][1:] if own else spec.shape, data, width, own)


def _check_dims(spec: TensorSpec, dims: Dims) -> None:
    if len(dims) != len(spec.shape) or any(
        not isinstance(found, int) or (found != wanted and (wanted != -1 or found < 0))
        for found, wanted in zip(dims, spec.shape, strict=True)
    ):
        raise BadFrame(
            f"input {spec.name!r} has shape [batch, {', '.join(map(str, dims))}], "
            f"expected [batch, {', '.join(map(str, spec.shape))}]",
            param=spec.name,
        )


def _shares(column: Column, rows: Sequence[int]) -> list[tuple[Dims, Part]]:
    """Each request's dims and part of a column."""
    shapes = column.shapes or [(count, *column.dims) for count in rows]
    shares: list[tuple[Dims, Part]] = []
    at = 0
    elements = [] if column.width else _elements(column, sum(map(prod, shapes)))
    for shape in shapes:
        dims, count = shape[1:], prod(shape)
        if column.width:
            end = at + count * column.width
            shares.append((dims, column.data[at:end]))
        else:
            end = at + count
            shares.append((dims, _by_row(elements[at:end], dims, shape[0])))
        at = end
    return shares


def _rows_of(column: Column, rows: int) -> list[list[bytes]]:
    return _by_row(_elements(column, rows * prod(column.dims)), column.dims, rows)


def _elements(column: Column, count: int) -> list[bytes]:
    """Every element of a BYTES column, in order."""
    data, at, end = column.data, 0, len(column.data)
    found: list[bytes] = []
    while at + 4 <= end:
        start = at + 4
        at = start + _LENGTH.unpack_from(data, at)[0]
        found.append(bytes(data[start:at]))
    if at != end or len(found) != count:
        name = column.spec.name
        raise BadFrame(f"input {name!r}: {end} bytes are not {count} BYTES elements", param=name)
    return found


def _by_row(elements: list[bytes], dims: Dims, rows: int) -> list[list[bytes]]:
    each = prod(dims)
    return [elements[i * each : (i + 1) * each] for i in range(rows)]
