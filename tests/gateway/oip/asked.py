"""Infer requests to parse in tests: right ones, and what refuses wrong ones."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from backends.wire import TensorSpec
from gateway.errors import BadRequest
from gateway.oip import Codec, parse_infer
from tests.gateway.oip.fakes import SIMPLE, echo_signature

CODEC = Codec(SIMPLE)
PAIR = Codec(echo_signature(TensorSpec("a", "INT32", (2,)), TensorSpec("b", "BYTES", (1,))))
VARIABLE = Codec(echo_signature(TensorSpec("v", "INT64", (-1,))))


def x(**changes: Any) -> dict[str, Any]:
    """The one input of SIMPLE, right unless changed; None takes a field out."""
    entry = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2.5, -3]} | changes
    return {name: value for name, value in entry.items() if value is not None}


def parse(document: Any, binary: bytes = b"", codec: Codec = CODEC) -> Any:
    text = document if isinstance(document, bytes) else orjson.dumps(document)
    return parse_infer(text + binary, len(text) if binary else None, codec)


def refused(document: Any, binary: bytes = b"", codec: Codec = CODEC) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        parse(document, binary, codec)
    return caught.value
