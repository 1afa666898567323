"""JSON values to bytes and back: numpy and struct are the oracle."""

from __future__ import annotations

import math
import struct

import ml_dtypes
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.oip.values import BadValue, Values, count_strings, join_strings, strings
from tests.gateway.oip.fakes import DTYPES

NUMPY = {
    "BOOL": np.bool_, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32,
    "UINT64": np.uint64, "INT8": np.int8, "INT16": np.int16, "INT32": np.int32,
    "INT64": np.int64, "FP16": np.float16, "FP32": np.float32, "FP64": np.float64,
    "BF16": ml_dtypes.bfloat16,
}  # fmt: skip
FLOATS = ("FP16", "FP32", "FP64", "BF16")
INTEGERS = tuple(name for name in NUMPY if "INT" in name)


@pytest.mark.parametrize("datatype", NUMPY)
@given(data=st.data())
def test_any_bytes_come_back_through_json_as_they_were(datatype, data):
    """Every bit pattern, so NaN, infinities and subnormals too; NaN keeps no payload."""
    size = Values(datatype).size
    raw = data.draw(st.binary(max_size=20).map(lambda b: b[: len(b) // size * size]))
    if datatype == "BOOL":
        raw = bytes(byte & 1 for byte in raw)
    values = orjson.loads(orjson.dumps(Values(datatype).unpack(raw)))
    expected = numbers(datatype, raw)
    np.testing.assert_array_equal(numbers(datatype, Values(datatype).pack(values)), expected)
    if datatype not in FLOATS:
        assert values == expected.tolist()
    # What a client makes of it with numpy alone.
    np.testing.assert_array_equal(np.array(values, expected.dtype), expected)


def numbers(datatype: str, raw: bytes) -> np.ndarray:
    """BF16 widened, for ml_dtypes neither compares NaN nor reads its name."""
    array = np.frombuffer(raw, NUMPY[datatype])
    return array.astype(np.float32) if datatype == "BF16" else array


@pytest.mark.parametrize("datatype", INTEGERS)
def test_integers_at_and_past_their_range(datatype):
    info = np.iinfo(NUMPY[datatype])
    values = Values(datatype)
    edges = [int(info.min), int(info.max)]
    assert values.pack(edges) == np.array(edges, NUMPY[datatype]).tobytes()
    for beyond in (int(info.min) - 1, int(info.max) + 1):
        with pytest.raises(BadValue, match=f"element 1 is {beyond}, outside .* {datatype} "):
            values.pack([0, beyond])


@given(st.lists(st.floats(width=32), max_size=12))
def test_fp32_in_json_reads_back_as_the_same_fp32(values):
    raw = struct.pack(f"<{len(values)}f", *values)
    text = orjson.dumps(Values("FP32").unpack(raw))
    again = Values("FP32").pack(orjson.loads(text))
    assert np.array_equal(np.frombuffer(again, "<f4"), np.frombuffer(raw, "<f4"), equal_nan=True)


@given(st.lists(st.floats(width=32, allow_nan=False, min_value=-(2.0**127), max_value=2.0**127)))
def test_bf16_rounds_as_ml_dtypes_does(values):
    expected = np.array(values, np.float32).astype(ml_dtypes.bfloat16).tobytes()
    assert Values("BF16").pack(values) == expected


@pytest.mark.parametrize(
    ("datatype", "limit"), [("FP16", 65504.0), ("FP32", 3.4028234e38), ("BF16", 3.38953e38)]
)
def test_fractions_past_their_range_are_refused_and_infinities_are_not(datatype, limit):
    values = Values(datatype)
    values.pack([limit, -limit])
    with pytest.raises(BadValue, match=f"element 1 is .* outside the range of {datatype}"):
        values.pack([0.0, limit * 1.01])
    assert values.unpack(values.pack(["Infinity", "-Infinity", "NaN"])) == [
        "Infinity", "-Infinity", "NaN",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("datatype", "values", "message"),
    [
        ("BOOL", [True, 1], r"element 1 is an integer \(1\), expected true or false"),
        ("INT32", [1, True], "element 1 is a boolean"),
        ("INT32", [1, 2.0], r"element 1 is a fraction \(2.0\), expected an integer"),
        ("INT32", [1, "2"], "element 1 is a string"),
        ("FP32", [1.0, True], r"element 1 is a boolean \(True\), expected a number"),
        ("FP32", [1.0, None], "element 1 is null"),
        ("FP32", [1.0, [2.0]], "element 1 is a list"),
        ("FP32", ["nan"], 'the strings that stand for numbers are "NaN", "Infinity"'),
        ("BYTES", ["a", 1], r"element 1 is an integer \(1\), expected a string"),
        ("BYTES", ["a", {}], "element 1 is an object"),
        ("FP32", ["x" * 500, 1.0], r"element 0 is the string 'x+\.\.\."),
    ],
)
def test_values_of_another_kind_are_named(datatype, values, message):
    with pytest.raises(BadValue, match=message):
        Values(datatype).pack(values)


@given(st.lists(st.text(max_size=9), max_size=6))
def test_strings_come_back(texts):
    packed = Values("BYTES").pack(texts)
    assert Values("BYTES").unpack(memoryview(packed)) == texts
    assert count_strings(packed) == len(texts)


@given(st.lists(st.binary(max_size=9), max_size=6))
def test_any_bytes_are_elements(elements):
    assert strings(join_strings(elements)) == elements


@given(st.lists(st.binary(max_size=5), min_size=1, max_size=4), st.data())
def test_cut_off_strings_are_found(elements, data):
    packed = join_strings(elements)
    # Cut inside an element: at an element's edge what is left is whole.
    edges = {len(join_strings(elements[:n])) for n in range(len(elements) + 1)}
    cut = data.draw(st.integers(0, len(packed)).filter(lambda at: at not in edges))
    for read in (strings, count_strings):
        with pytest.raises(BadValue):
            read(packed[:cut])


def test_bytes_that_are_no_utf8_cannot_be_json():
    with pytest.raises(BadValue, match="element 1 is no UTF-8"):
        Values("BYTES").unpack(join_strings([b"good", b"\xff\xfe"]))


@pytest.mark.parametrize("datatype", [d for d in DTYPES if d not in ("BYTES", "BOOL")])
def test_half_an_element_is_refused(datatype):
    size = Values(datatype).size
    if size > 1:
        with pytest.raises(BadValue, match="no whole number of"):
            Values(datatype).unpack(bytes(size + 1))


def test_a_sum_that_overflows_hides_no_value():
    big = [1.7e308, 1.7e308, -3.0]
    assert Values("FP64").unpack(struct.pack("<3d", *big)) == big
    assert math.isinf(sum(big))


def test_the_layouts_of_many_lengths_take_bounded_memory():
    values = Values("UINT8")
    for length in range(2000):
        values.pack([0] * length)
    assert len(values._layouts) <= 512
