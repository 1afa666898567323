"""A model's signature, compiled: everything about a request that can be known before it comes.

Owns the tables that parsing and rendering look into. Invariant: a codec is made of one signature
and never changes with the requests that pass through it, but for bounded caches.
"""

from __future__ import annotations

from math import prod
from typing import Any

from backends.wire import DATATYPES, Buffer, Signature, TensorSpec
from gateway.errors import BadRequest
from gateway.oip.parameters import Wanted, binary_data_size
from gateway.oip.values import BadValue, Values, count_strings
from gateway.request import Tensor

_TRUTH = b"\x00" + b"\x01" * 255
_FIELDS = frozenset({"name", "shape", "datatype", "parameters", "data"})


class InputCodec:
    """Reads one input. `tail`: its shape without the batch; `row`: elements of one row, -1 where
    a dimension is variable."""

    __slots__ = ("_size", "_tail", "datatype", "name", "row", "tail", "values")

    def __init__(self, spec: TensorSpec, values: Values) -> None:
        self.name, self.datatype, self.tail = spec.name, spec.datatype, spec.shape
        self.values = values
        self._tail = list(spec.shape)
        self._size = DATATYPES[spec.datatype].size
        self.row = -1 if -1 in spec.shape else prod(spec.shape)

    def read(self, entry: dict[str, Any], rest: memoryview, at: int) -> tuple[Tensor, int]:
        """The tensor, and where in the binary part the next one starts. Raises BadRequest."""
        # With four fields or fewer, one that is not known leaves a needed one out.
        if len(entry) > 4 and not entry.keys() <= _FIELDS:
            name = next(name for name in entry if name not in _FIELDS)
            raise self._bad(name, f"field {name!r} is not known")
        if entry.get("datatype") != self.datatype:
            raise self._bad(
                "datatype", f"datatype is {entry.get('datatype')!r}, expected {self.datatype!r}"
            )
        shape = self._shape(entry.get("shape"))
        row = self.row
        count = shape[0] * row if row >= 0 else prod(shape)
        data = entry.get("data")
        parameters = entry.get("parameters")
        size = None if parameters is None else binary_data_size(parameters, self._at("parameters"))
        if size is None:
            return Tensor(self.name, self.datatype, shape, self._packed(data, shape, count)), at
        if data is not None:
            raise self._bad("data", "both data and binary_data_size are given; send one of them")
        end = at + size
        if end > len(rest):
            raise self._bad(
                "parameters.binary_data_size",
                f"binary_data_size is {size}, but {len(rest) - at} bytes are left after the JSON; "
                "the header Inference-Header-Content-Length says where it ends",
            )
        part = self.checked(rest[at:end], shape, count)
        return Tensor(self.name, self.datatype, shape, part), end

    def checked(self, data: Buffer, shape: tuple[int, ...], count: int) -> Buffer:
        """Binary data that is exactly `count` elements. Raises BadRequest."""
        width = self._size
        if width:
            if len(data) != count * width:
                raise self._bad(
                    "parameters.binary_data_size",
                    f"{len(data)} bytes of data, but shape {list(shape)} of {self.datatype} "
                    f"takes {count * width}",
                )
            if self.datatype == "BOOL" and bytes(data).translate(None, b"\x00\x01"):
                # Any byte but 0 is true to clients; to frameworks such a byte is no boolean.
                return bytes(data).translate(_TRUTH)
            return data
        try:
            found = count_strings(data)
        except BadValue as error:
            raise self._bad("data", str(error)) from error
        if found != count:
            raise self._bad(
                "data", f"{found} elements of BYTES, but shape {list(shape)} takes {count}"
            )
        return data

    def _shape(self, given: Any) -> tuple[int, ...]:
        if type(given) is list and given and type(given[0]) is int and given[0] > 0:
            if self.row < 0:
                if self._matches(given):
                    return tuple(given)
            elif given[1:] == self._tail:
                return (given[0], *self.tail)
        raise self._bad("shape", self._misshapen(given))

    def _matches(self, given: list[Any]) -> bool:
        return len(given) == len(self.tail) + 1 and all(
            type(dim) is int and (dim == wanted if wanted >= 0 else dim >= 0)
            for dim, wanted in zip(given[1:], self.tail, strict=True)
        )

    def _misshapen(self, given: Any) -> str:
        wanted = ", ".join(["batch", *map(str, self.tail)])
        text = f"shape is {given}, expected [{wanted}]"
        if type(given) is not list or not all(type(dim) is int for dim in given):
            return f"{text}: a list of whole numbers"
        if any(dim < 0 for dim in given):
            return f"{text}: no dimension may be negative"
        if len(given) == len(self.tail) and self._matches([1, *given]):
            return f"{text}: the first dimension is the batch; for one row send {[1, *given]}"
        if len(given) == len(self.tail) + 1 and given[0] == 0:
            return f"{text}: the batch must have at least one row"
        return text

    def _packed(self, data: Any, shape: tuple[int, ...], count: int) -> bytes:
        if type(data) is not list:
            if data is None:
                raise self._bad("data", "neither data nor binary_data_size is given")
            raise self._bad("data", "data must be a list, flat or nested as the shape says")
        if len(data) != count or (count and type(data[0]) is list):
            data = self._flat(data, shape, count)
        try:
            return self.values.pack(data)
        except BadValue as error:
            raise self._bad("data", f"data: {error}") from error

    def _flat(self, data: list[Any], shape: tuple[int, ...], count: int) -> list[Any]:
        """Nested data as a flat list; each level that is nested must have its dimension."""
        level, depth = data, 0
        while level and type(level[0]) is list:
            if depth + 1 == len(shape):
                raise self._bad("data", f"data is nested deeper than the shape {list(shape)}")
            depth += 1
            if len(level) != prod(shape[:depth]):
                raise self._bad(
                    "data",
                    f"data has {len(level)} lists at depth {depth}, "
                    f"shape {list(shape)} takes {prod(shape[:depth])}",
                )
            flat: list[Any] = []
            for part in level:
                if type(part) is not list or len(part) != len(level[0]):
                    raise self._bad("data", f"data is ragged at depth {depth}")
                flat += part
            level = flat
        if len(level) != count:
            raise self._bad(
                "data", f"data has {len(level)} elements, shape {list(shape)} takes {count}"
            )
        return level

    def _at(self, field: str) -> str:
        return f"inputs.{self.name}.{field}"

    def _bad(self, field: str, what: str) -> BadRequest:
        return BadRequest(f"input {self.name!r}: {what}", param=self._at(field))


class Codec:
    """`key_dims`: which dimensions (input, axis) must be equal for requests to share a batch."""

    __slots__ = (
        "all_binary",
        "all_json",
        "by_name",
        "inputs",
        "key_dims",
        "max_batch_size",
        "output_index",
        "outputs",
        "signature",
        "values",
    )

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self.values = {name: Values(name) for name in DATATYPES}
        self.inputs = tuple(
            InputCodec(spec, self.values[spec.datatype]) for spec in signature.inputs
        )
        self.by_name = {item.name: at for at, item in enumerate(self.inputs)}
        self.outputs = signature.outputs
        self.output_index = {spec.name: at for at, spec in enumerate(signature.outputs)}
        self.max_batch_size = signature.max_batch_size
        self.all_json = tuple(Wanted(at, False, 0) for at in range(len(signature.outputs)))
        self.all_binary = tuple(Wanted(at, True, 0) for at in range(len(signature.outputs)))
        self.key_dims = _key_dims(signature)


def _key_dims(signature: Signature) -> tuple[tuple[int, int], ...]:
    """All variable dimensions, but for the first of each input where those are joined."""
    joined = 0 if signature.ragged == "refuse" else 1
    variable: list[tuple[int, int]] = []
    for at, spec in enumerate(signature.inputs):
        axes = [axis + 1 for axis, dim in enumerate(spec.shape) if dim < 0]
        variable += [(at, axis) for axis in axes[joined:]]
    return tuple(variable)
