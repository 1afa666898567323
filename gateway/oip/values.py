"""JSON values to tensor bytes and back, for every datatype.

Owns conversion and range checks of flat lists; knows nothing of shapes, names or requests.
Invariant: what `unpack` gives, `pack` turns into the same bytes (NaN payloads aside). JSON has no
NaN and no infinities: in both directions they are the strings that protobuf's JSON mapping uses,
which `numpy.array` reads as well.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from math import isfinite, isinf, isnan, nan
from typing import Any

from backends.wire import DATATYPES, Buffer

_FLOATS = frozenset({"FP16", "FP32", "FP64", "BF16"})
_SPECIAL = {"NaN": nan, "Infinity": float("inf"), "-Infinity": float("-inf"), "Inf": float("inf")}
_U32 = struct.Struct("<I")
# The sets of Python types that a list for the datatype may hold.
_NUMBERS = frozenset({int, float})
_KINDS = {name: _NUMBERS if name in _FLOATS else frozenset({int}) for name in DATATYPES}
_KINDS["BOOL"], _KINDS["BYTES"] = frozenset({bool}), frozenset({str})
_WORDS = {"BOOL": "true or false", "BYTES": "a string"}
_TYPE_WORDS = {
    bool: "a boolean", int: "an integer", float: "a fraction", str: "a string",
    list: "a list", dict: "an object", type(None): "null",
}  # fmt: skip
_MAX_BF16 = 3.3895313892515355e38


class BadValue(ValueError):
    """An element that the datatype cannot hold; the message says which and why."""


class _Layouts(dict[int, struct.Struct]):
    """How n elements of a datatype lie in memory, kept by n: building one costs more than its use.
    Clients choose n, so the table is emptied when it is full."""

    def __init__(self, code: str) -> None:
        super().__init__()
        self._code = code

    def __missing__(self, count: int) -> struct.Struct:
        if len(self) >= 512:
            self.clear()
        made = self[count] = struct.Struct(f"<{count}{self._code}")
        return made


class Values:
    """One datatype's conversion."""

    __slots__ = ("_kinds", "_layouts", "_pack", "datatype", "is_float", "size")

    def __init__(self, datatype: str) -> None:
        known = DATATYPES[datatype]
        self.datatype, self.size = datatype, known.size
        self.is_float = datatype in _FLOATS
        self._kinds = _KINDS[datatype]
        self._layouts = _Layouts(known.code)
        self._pack = {"BYTES": _pack_strings, "BF16": _pack_bf16}.get(datatype)

    def pack(self, values: list[Any]) -> bytes:
        """A flat list as tensor bytes. Raises BadValue."""
        kinds = set(map(type, values))
        if not kinds <= self._kinds:
            if not self.is_float or not kinds <= _NUMBERS | {str}:
                raise BadValue(_wrong_type(self.datatype, values))
            values = _with_specials(values)
        if self._pack is not None:
            return self._pack(values)
        try:
            return self._layouts[len(values)].pack(*values)
        except (struct.error, OverflowError) as error:
            raise BadValue(_out_of_range(self.datatype, values)) from error

    def unpack(self, data: Buffer) -> Sequence[Any]:
        """Tensor bytes as values that JSON can carry. Raises BadValue for BYTES that are no UTF-8,
        and for data that is no whole number of elements."""
        if self.datatype == "BYTES":
            return _unpack_strings(data)
        values = self.numbers(data)
        # One sum finds every NaN and infinity; it may overflow without any, then the look is idle.
        if self.is_float and not isfinite(sum(values)):
            return [value if isfinite(value) else _name(value) for value in values]
        return values

    def numbers(self, data: Buffer) -> Sequence[Any]:
        """The same as numbers, NaN and infinities left as they are; not for BYTES."""
        if self.datatype == "BF16":
            return _unpack_bf16(data)
        try:
            return self._layouts[len(data) // self.size].unpack(data)
        except struct.error as error:
            raise BadValue(f"{len(data)} bytes are no whole number of {self.datatype}") from error


def strings(data: Buffer) -> list[bytes]:
    """The elements of BYTES data. Raises BadValue where the lengths do not add up."""
    view, at = memoryview(data), 0
    out: list[bytes] = []
    size = len(view)
    while at < size:
        start = at + 4
        if start > size:
            raise BadValue(f"the length of element {len(out)} is cut off")
        at = start + _U32.unpack_from(view, at)[0]
        if at > size:
            raise BadValue(f"element {len(out)} says {at - start} bytes, {size - start} are left")
        out.append(bytes(view[start:at]))
    return out


def count_strings(data: Buffer) -> int:
    """How many elements BYTES data holds. Raises BadValue where the lengths do not add up."""
    view, at, count = memoryview(data), 0, 0
    size, length_at = len(view), _U32.unpack_from
    while at + 4 <= size:
        at += 4 + length_at(view, at)[0]
        count += 1
    if at != size:
        raise BadValue(f"the lengths of its elements take {at} bytes, it has {size}")
    return count


def join_strings(elements: Sequence[bytes]) -> bytes:
    """BYTES data of these elements."""
    parts: list[bytes] = []
    for element in elements:
        parts += (_U32.pack(len(element)), element)
    return b"".join(parts)


def _pack_strings(values: list[str]) -> bytes:
    return join_strings([value.encode() for value in values])


def _unpack_strings(data: Buffer) -> list[str]:
    out: list[str] = []
    for at, element in enumerate(strings(data)):
        try:
            out.append(element.decode())
        except UnicodeDecodeError as error:
            raise BadValue(f"element {at} is no UTF-8, so JSON cannot carry it") from error
    return out


def _pack_bf16(values: list[Any]) -> bytes:
    """Rounded to nearest, ties to even."""
    for at, value in enumerate(values):
        if abs(value) > _MAX_BF16 and not isinf(value):
            raise BadValue(_outside(at, value, "BF16"))
    words = struct.unpack(f"<{len(values)}I", struct.pack(f"<{len(values)}f", *values))
    halves = [
        0x7FC0 if isnan(value) else (word + 0x7FFF + (word >> 16 & 1)) >> 16
        for value, word in zip(values, words, strict=True)
    ]
    return struct.pack(f"<{len(halves)}H", *halves)


def _unpack_bf16(data: Buffer) -> tuple[float, ...]:
    if len(data) % 2:
        raise BadValue(f"{len(data)} bytes are no whole number of BF16")
    wide = bytearray(2 * len(data))
    wide[2::4], wide[3::4] = data[0::2], data[1::2]
    return struct.unpack(f"<{len(data) // 2}f", wide)


def _with_specials(values: list[Any]) -> list[Any]:
    """The numbers, with the names of NaN and the infinities in their place."""
    out = [_SPECIAL.get(value) if type(value) is str else value for value in values]
    if None in out:
        at = out.index(None)
        raise BadValue(
            f"element {at} is the string {_short(values[at])}; the strings that stand for numbers "
            f'are "NaN", "Infinity" and "-Infinity"'
        )
    return out


def _name(value: float) -> str:
    return "NaN" if isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _wrong_type(datatype: str, values: list[Any]) -> str:
    allowed = _KINDS[datatype]
    at, value = next(pair for pair in enumerate(values) if type(pair[1]) not in allowed)
    wanted = _WORDS.get(datatype) or ("a number" if datatype in _FLOATS else "an integer")
    return f"element {at} is {_TYPE_WORDS[type(value)]} ({_short(value)}), expected {wanted}"


def _out_of_range(datatype: str, values: list[Any]) -> str:
    one = struct.Struct(f"<{DATATYPES[datatype].code}")
    for at, value in enumerate(values):
        try:
            one.pack(value)
        except (struct.error, OverflowError):
            return _outside(at, value, datatype)
    raise AssertionError("each element fits, yet all of them do not")


def _outside(at: int, value: Any, datatype: str) -> str:
    limits = ""
    if datatype not in _FLOATS:
        bits = DATATYPES[datatype].size * 8
        low = 0 if datatype[0] == "U" else -(2 ** (bits - 1))
        limits = f" ({low} to {low + 2**bits - 1})"
    return f"element {at} is {_short(value)}, outside the range of {datatype}{limits}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
