"""An infer request: from the body's bytes to checked tensors.

Pure, and the only place that decides whether a request is well formed. Binary tensors are views of
the body, JSON ones are packed once. Invariant: a request that comes out has every input of the
signature exactly once, in its order, with equal rows and exactly the bytes that its shapes take.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Hashable
from typing import Any

import orjson

from backends.wire import Buffer
from gateway.errors import BadRequest
from gateway.oip.codec import Codec
from gateway.oip.parameters import NO_PARAMETERS, Wanted, request_parameters, wanted_outputs
from gateway.request import Tensor

# Clients may name the model in the body; the path decides.
_FIELDS = frozenset({"id", "parameters", "inputs", "outputs", "model_name", "model_version"})
_NOTHING = memoryview(b"")
# NaN and the infinities as many writers put them, bare; strings are matched to step over them.
_BARE = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\Z)|-?\bInf(?:inity)?\b|\bNaN\b')
# Rewriting them costs a pass over the text: no more of it than this blocks the loop.
MAX_BARE = 1024 * 1024


class InferRequest:
    """`inputs` in the signature's order. `key`: requests with equal keys may share a batch.
    `wanted`: the outputs to render, in order. `priority` on the gateway's scale; `timeout_us`: 0
    if the request sets none. `model`, `version`: what the body names, if it does."""

    __slots__ = (
        "id",
        "inputs",
        "key",
        "model",
        "priority",
        "rows",
        "timeout_us",
        "version",
        "wanted",
    )

    def __init__(
        self,
        id: str | None,
        inputs: tuple[Tensor, ...],
        rows: int,
        key: Hashable,
        wanted: tuple[Wanted, ...],
        priority: int = 0,
        timeout_us: int = 0,
        model: str | None = None,
        version: str | None = None,
    ) -> None:
        self.id, self.inputs, self.rows, self.key, self.wanted = id, inputs, rows, key, wanted
        self.priority, self.timeout_us = priority, timeout_us
        self.model, self.version = model, version


def parse_infer(body: Buffer, header_length: int | None, codec: Codec) -> InferRequest:
    """`header_length`: bytes of JSON at the body's head; None: all of it; 0: a raw-binary request,
    whose body is the only input's data for one row. Raises BadRequest."""
    text, rest = body, _NOTHING
    if header_length is not None:
        if not header_length:
            return _raw(body, codec)
        if header_length > len(body):
            raise BadRequest(
                f"Inference-Header-Content-Length is {header_length}, "
                f"but the body has {len(body)} bytes",
                param="Inference-Header-Content-Length",
            )
        view = memoryview(body)
        text, rest = view[:header_length], view[header_length:]
    return read_infer(load(text), rest, codec)


def load(text: Buffer) -> dict[str, Any]:
    """The JSON object of a request. Raises BadRequest."""
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        document = _load_bare(text, error)
    if type(document) is not dict:
        raise BadRequest("the request must be a JSON object")
    return document


def read_infer(document: dict[str, Any], rest: memoryview, codec: Codec) -> InferRequest:
    """A request whose JSON is read already; `rest`: its binary part. Raises BadRequest."""
    given = document.get("inputs")
    inputs = codec.inputs
    if type(given) is not list or len(given) != len(inputs):
        raise _wrong_inputs(given, codec)
    at = rows = 0
    tensors: list[Any] = [None] * len(inputs)
    by_name = codec.by_name
    for entry in given:
        try:
            index = by_name[entry["name"]]
        except (KeyError, TypeError):
            raise _no_input(entry, codec) from None
        if tensors[index] is not None:
            raise BadRequest(f"input {entry['name']!r} is given twice", param="inputs")
        tensor, at = inputs[index].read(entry, rest, at)
        tensors[index] = tensor
        if tensor[2][0] != rows:
            if rows:
                raise _unequal_rows(tensors)
            rows = tensor[2][0]
    if at != len(rest):
        raise BadRequest(
            f"{len(rest) - at} bytes follow the last tensor; the sizes of the inputs "
            f"({at} bytes) and the header length must take the whole body",
            param="inputs",
        )
    if rows > codec.max_batch_size:
        raise BadRequest(
            f"the request has {rows} rows, the model's max_batch_size is {codec.max_batch_size}",
            param="inputs",
        )
    return _request(document, tuple(tensors), rows, codec)


def _request(
    document: dict[str, Any], tensors: tuple[Tensor, ...], rows: int, codec: Codec
) -> InferRequest:
    """Everything but the tensors."""
    key = tuple([tensors[at][2][axis] for at, axis in codec.key_dims]) if codec.key_dims else ()
    if len(document) == 1:
        return InferRequest(None, tensors, rows, key, codec.all_json)
    if not document.keys() <= _FIELDS:
        name = next(name for name in document if name not in _FIELDS)
        raise BadRequest(
            f"field {name!r} is not known; a request has id, parameters, inputs, outputs",
            param=name,
        )
    parameters = NO_PARAMETERS
    if "parameters" in document:
        parameters = request_parameters(document["parameters"])
    wanted = codec.all_binary if parameters.binary else codec.all_json
    outputs = document.get("outputs")
    if outputs is not None and type(outputs) is not list:
        raise BadRequest("outputs must be a list", param="outputs")
    if outputs:
        wanted = wanted_outputs(outputs, codec.signature, codec.output_index)
    return InferRequest(
        _text(document, "id"),
        tensors,
        rows,
        key,
        wanted,
        parameters.priority,
        parameters.timeout_us,
        _text(document, "model_name"),
        _text(document, "model_version"),
    )


def _load_bare(text: Buffer, error: orjson.JSONDecodeError) -> Any:
    """Once more, with bare NaN and infinities as the strings that stand for them."""
    if len(text) <= MAX_BARE:
        mended = _BARE.sub(_quoted, bytes(text))
        if len(mended) != len(text):
            try:
                return orjson.loads(mended)
            except orjson.JSONDecodeError as second:
                error = second
    what = "the body is empty" if not len(text) else f"the request is no valid JSON: {error}"
    raise BadRequest(what) from error


def _quoted(match: re.Match[bytes]) -> bytes:
    found = match[0]
    if found[:1] == b'"':
        return found
    return b'"NaN"' if found == b"NaN" else b'"-Infinity"' if found[:1] == b"-" else b'"Infinity"'


def _raw(body: Buffer, codec: Codec) -> InferRequest:
    """A body without JSON: one row of the only input, every output binary."""
    if len(codec.inputs) != 1:
        raise BadRequest(
            f"Inference-Header-Content-Length is 0, but the model has {len(codec.inputs)} inputs; "
            "a body of raw data is for models with one",
            param="Inference-Header-Content-Length",
        )
    only = codec.inputs[0]
    size = only.values.size
    if not size:
        # The whole body is one element.
        body = b"".join((struct.pack("<I", len(body)), body))
    shape = (1, *_deduced(only.tail, len(body) // size if size else 1, only.name))
    count = 1
    for dim in shape:
        count *= dim
    tensor = Tensor(only.name, only.datatype, shape, only.checked(body, shape, count))
    key = tuple([shape[axis] for _, axis in codec.key_dims])
    return InferRequest(None, (tensor,), 1, key, codec.all_binary)


def _deduced(tail: tuple[int, ...], count: int, name: str) -> tuple[int, ...]:
    """The one variable dimension of a row of `count` elements."""
    known = 1
    for dim in tail:
        known *= dim if dim >= 0 else 1
    if tail.count(-1) > 1:
        raise BadRequest(
            f"input {name!r}: shape {list(tail)} has more than one variable dimension, so raw data "
            "does not tell it; send a JSON header with the shape",
            param=f"inputs.{name}.shape",
        )
    found = count // known if known else 0
    return tuple(found if dim < 0 else dim for dim in tail)


def _no_input(entry: Any, codec: Codec) -> BadRequest:
    name = entry.get("name") if type(entry) is dict else None
    known = ", ".join(codec.by_name)
    return BadRequest(
        f"there is no input {name!r}; the model takes {known}"
        if type(name) is str
        else "each of the inputs must be an object with a name",
        param="inputs",
    )


def _wrong_inputs(given: Any, codec: Codec) -> BadRequest:
    wanted = ", ".join(codec.by_name)
    if type(given) is not list:
        return BadRequest(
            f"inputs must be a list of tensors; the model takes {wanted}", param="inputs"
        )
    names = [entry.get("name") for entry in given if type(entry) is dict]
    missing = ", ".join(name for name in codec.by_name if name not in names)
    return BadRequest(
        f"{len(given)} inputs are given, the model takes {len(codec.inputs)}: {wanted}"
        + (f"; {missing} is missing" if missing else ""),
        param="inputs",
    )


def _unequal_rows(tensors: list[Tensor | None]) -> BadRequest:
    rows = ", ".join(f"{t.name} has {t.shape[0]}" for t in tensors if t is not None)
    return BadRequest(
        f"all inputs must have the same number of rows (their first dimension): {rows}",
        param="inputs",
    )


def _text(document: dict[str, Any], name: str) -> str | None:
    value = document.get(name)
    if value is not None and type(value) is not str:
        raise BadRequest(f"{name} must be a string", param=name)
    return value
