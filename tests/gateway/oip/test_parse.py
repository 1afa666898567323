"""Infer requests: what is accepted comes out exact, in every datatype, shape and form."""

from __future__ import annotations

import struct
from math import prod
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.wire import Signature, TensorSpec
from gateway.errors import BadRequest
from gateway.oip import Codec, parse_infer
from gateway.oip.parameters import Wanted
from gateway.oip.values import Values, join_strings
from tests.gateway.oip.asked import CODEC, parse, refused, x
from tests.gateway.oip.fakes import DTYPES, echo_signature

# ----------------------------------------------------------------------------------- round trips


@st.composite
def tensors(draw: st.DrawFn, datatype: str, rows: int, shape: tuple[int, ...]) -> bytes:
    """The bytes of a tensor that JSON can carry."""
    count = rows * prod(shape)
    if datatype == "BYTES":
        texts = st.lists(st.text(max_size=4), min_size=count, max_size=count)
        return join_strings([text.encode() for text in draw(texts)])
    size = Values(datatype).size
    raw = draw(st.binary(min_size=count * size, max_size=count * size))
    if datatype == "BOOL":
        return bytes(byte & 1 for byte in raw)
    # NaN payloads do not survive JSON: canonical ones from the start.
    values = Values(datatype)
    return values.pack(list(values.unpack(raw)))


def nested(values: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """As JSON nests a tensor."""
    if len(shape) == 1:
        return values
    step = len(values) // shape[0] if shape[0] else 0
    return [nested(values[at * step : (at + 1) * step], shape[1:]) for at in range(shape[0])]


@st.composite
def requests(
    draw: st.DrawFn,
) -> tuple[Signature, dict[str, Any], bytes, list[tuple[Any, ...]], Any]:
    """Any signature, a request for it in any mix of forms, and what must come out."""
    rows = draw(st.integers(1, 3))
    specs, entries, expected = [], [], []
    count = draw(st.integers(1, 3))
    for number in range(count):
        datatype = draw(st.sampled_from(DTYPES))
        shape = tuple(draw(st.lists(st.integers(0, 3), max_size=2)))
        variable = tuple(-1 if draw(st.booleans()) else dim for dim in shape)
        specs.append(TensorSpec(f"t{number}", datatype, variable))
        raw = draw(tensors(datatype, rows, shape))
        expected.append((f"t{number}", datatype, (rows, *shape), raw))
        entry: dict[str, Any] = {
            "name": f"t{number}",
            "datatype": datatype,
            "shape": [rows, *shape],
        }
        form = draw(st.sampled_from(("binary", "flat", "nested")))
        if form == "binary":
            entry["parameters"] = {"binary_data_size": len(raw)}
        else:
            values = list(Values(datatype).unpack(raw))
            entry["data"] = values if form == "flat" else nested(values, (rows, *shape))
        entries.append((entry, raw if form == "binary" else b""))
    order = draw(st.permutations(range(count)))
    inputs = [entries[at][0] for at in order]
    binary = b"".join(entries[at][1] for at in order)
    signature = Signature(tuple(specs), (), max_batch_size=3)
    return signature, {"inputs": inputs}, binary, expected, rows


@given(requests(), st.sampled_from((bytes, bytearray, memoryview)))
def test_every_datatype_shape_and_form_comes_out_exact(case, kind):
    signature, document, binary, expected, rows = case
    text = orjson.dumps(document)
    request = parse_infer(kind(text + binary), len(text), Codec(signature))
    assert request.rows == rows
    assert [(t.name, t.datatype, t.shape, bytes(t.data)) for t in request.inputs] == expected


@given(requests(), st.data())
def test_any_cut_of_the_body_is_refused_or_whole(case, data):
    """A body that ends early, or a wrong header length, never makes a tensor."""
    signature, document, binary, expected, _ = case
    text = orjson.dumps(document)
    body = text + binary
    cut = data.draw(st.integers(1, max(1, len(body) - 1)))
    length = data.draw(st.integers(1, len(body)))
    for part, said in ((body[:cut], len(text)), (body, length)):
        try:
            request = parse_infer(part, said, Codec(signature))
        except BadRequest:
            continue
        assert [bytes(t.data) for t in request.inputs] == [raw for *_, raw in expected]


def test_binary_tensors_are_views_of_the_body():
    raw = struct.pack("<3f", 1, 2, 3)
    text = orjson.dumps({"inputs": [x(data=None, parameters={"binary_data_size": 12})]})
    body = bytearray(text + raw)
    request = parse_infer(body, len(text), CODEC)
    body[-12:] = struct.pack("<3f", 7, 8, 9)
    assert struct.unpack("<3f", request.inputs[0].data) == (7, 8, 9)


def test_any_byte_but_0_is_true():
    codec = Codec(echo_signature(TensorSpec("t", "BOOL", (3,))))
    entry = {"name": "t", "datatype": "BOOL", "shape": [1, 3]}
    entry["parameters"] = {"binary_data_size": 3}
    assert (
        bytes(parse({"inputs": [entry]}, b"\x00\x02\xff", codec).inputs[0].data) == b"\x00\x01\x01"
    )
    assert parse_infer(b"\x00\x02\xff", 0, codec).inputs[0].data == b"\x00\x01\x01"


def test_the_small_things_of_a_request():
    request = parse({"id": "a", "inputs": [x()]})
    assert request.id == "a" and request.rows == 1 and request.key == ()
    assert request.wanted == (Wanted(0, False, 0), Wanted(1, False, 0))
    assert (request.priority, request.timeout_us) == (0, 0)
    assert struct.unpack("<3f", request.inputs[0].data) == (1, 2.5, -3)
    assert parse({"inputs": [x()]}).id is None


# -------------------------------------------------------------------------- batches and their keys


@pytest.mark.parametrize(
    ("ragged", "shape", "key"),
    [
        ("refuse", (-1, 2, -1), (4, 6)),
        ("pad", (-1, 2, -1), (6,)),
        ("pad", (2, -1), ()),
        ("concat", (-1, 2, -1), (6,)),
        ("concat", (-1,), ()),
        ("refuse", (4, 2), ()),
    ],
)
def test_the_key_holds_the_dimensions_that_must_agree(ragged, shape, key):
    codec = Codec(echo_signature(TensorSpec("t", "UINT8", shape), ragged=ragged))
    sizes = [1, *(dim if dim > 0 else 4 + axis for axis, dim in enumerate(shape))]
    entry = {"name": "t", "datatype": "UINT8", "shape": sizes, "data": [0] * prod(sizes)}
    assert parse({"inputs": [entry]}, codec=codec).key == key


# ------------------------------------------------------------------------------------- raw bodies


@pytest.mark.parametrize(
    ("spec", "body", "shape", "data"),
    [
        (TensorSpec("t", "FP32", (3,)), bytes(12), (1, 3), bytes(12)),
        (TensorSpec("t", "INT16", (2, -1)), bytes(20), (1, 2, 5), bytes(20)),
        (TensorSpec("t", "INT16", (-1,)), b"", (1, 0), b""),
        (TensorSpec("t", "BYTES", (1,)), b"text", (1, 1), join_strings([b"text"])),
        (TensorSpec("t", "BYTES", (-1,)), b"\xff", (1, 1), join_strings([b"\xff"])),
        (TensorSpec("t", "BYTES", ()), b"", (1,), join_strings([b""])),
    ],
)
def test_a_raw_body_is_the_only_input(spec, body, shape, data):
    request = parse_infer(body, 0, Codec(echo_signature(spec)))
    assert request.inputs == (("t", spec.datatype, shape, data),)
    assert request.rows == 1 and request.wanted == (Wanted(0, True, 0),)


@pytest.mark.parametrize(
    ("specs", "body", "message"),
    [
        ((TensorSpec("t", "FP32", (3,)),), bytes(24), "24 bytes of data, but shape [1, 3]"),
        ((TensorSpec("t", "FP32", (3, -1)),), bytes(20), "20 bytes of data, but shape [1, 3, 1]"),
        ((TensorSpec("t", "FP32", (0, -1)),), bytes(4), "4 bytes of data, but shape [1, 0, 0]"),
        ((TensorSpec("t", "FP32", (-1, -1)),), bytes(4), "more than one variable dimension"),
        ((TensorSpec("t", "BYTES", (2,)),), b"ab", "1 elements of BYTES, but shape [1, 2]"),
        ((TensorSpec("a", "FP32", ()), TensorSpec("b", "FP32", ())), b"", "the model has 2 inputs"),
    ],
)
def test_raw_bodies_that_do_not_fit(specs, body, message):
    with pytest.raises(BadRequest) as caught:
        parse_infer(body, 0, Codec(echo_signature(*specs)))
    assert message in caught.value.message


# ------------------------------------------------------------------------------- NaN in requests


def test_bare_nan_and_infinities_are_understood_outside_of_strings():
    text = (
        b'{"id": "NaN, \\"Infinity\\"", "inputs": [{"name": "x", "shape": [1, 3], '
        b'"datatype": "FP32", "data": [NaN, -Infinity, Inf]}]}'
    )
    request = parse(text)
    assert request.id == 'NaN, "Infinity"'
    nan, low, high = struct.unpack("<3f", request.inputs[0].data)
    assert nan != nan and (low, high) == (float("-inf"), float("inf"))


def test_nan_where_no_number_stands_is_still_refused():
    assert refused(b'{"inputs": NaN}').message.startswith("inputs must be a list")
    assert "no valid JSON" in refused(b'{"inputs": [], NaN: 1}'.replace(b"NaN:", b"NaN")).message
