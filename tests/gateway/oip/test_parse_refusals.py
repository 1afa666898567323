"""Infer requests that are wrong: refused, and the message names the field and what was expected."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BadRequest
from gateway.oip import parse_infer
from gateway.oip.values import join_strings
from tests.gateway.oip.asked import CODEC, PAIR, VARIABLE, parse, refused, x


def test_rows_must_agree_and_fit():
    a = {"name": "a", "datatype": "INT32", "shape": [2, 2], "data": [1, 2, 3, 4]}
    b = {"name": "b", "datatype": "BYTES", "shape": [1, 1], "data": ["s"]}
    error = refused({"inputs": [a, b]}, codec=PAIR)
    assert error.message.endswith("a has 2, b has 1") and "number of rows" in error.message
    many = x(shape=[9, 3], data=[0] * 27)
    error = refused({"inputs": [many]})
    assert error.message == "the request has 9 rows, the model's max_batch_size is 8"
    assert parse({"inputs": [x(shape=[8, 3], data=[0] * 24)]}).rows == 8


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([3], "expected [batch, 3]: the first dimension is the batch; for one row send [1, 3]"),
        ([1, 4], "shape is [1, 4], expected [batch, 3]"),
        ([1, 1, 3], "shape is [1, 1, 3], expected [batch, 3]"),
        ([0, 3], "the batch must have at least one row"),
        ([-1, 3], "no dimension may be negative"),
        ([True, 3], "a list of whole numbers"),
        ([1.0, 3], "a list of whole numbers"),
        (["1", 3], "a list of whole numbers"),
        ([], "expected [batch, 3]"),
        (3, "a list of whole numbers"),
        (None, "shape is None"),
    ],
)
def test_wrong_shapes_say_what_was_expected(shape, message):
    error = refused({"inputs": [x(shape=shape)]})
    assert message in error.message and "input 'x'" in error.message
    assert error.param == "inputs.x.shape"


@pytest.mark.parametrize("shape", [[1, -1], [1, 2.0], [1, True], [1]])
def test_wrong_variable_dimensions(shape):
    entry = {"name": "v", "datatype": "INT64", "shape": shape, "data": [1]}
    assert refused({"inputs": [entry]}, codec=VARIABLE).param == "inputs.v.shape"


def test_a_shape_of_astronomic_size_is_refused_for_its_data():
    entry = {"name": "v", "datatype": "INT64", "shape": [8, 2**62], "data": [1]}
    assert "takes 36893488147419103232" in refused({"inputs": [entry]}, codec=VARIABLE).message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1, 2], "data has 2 elements, shape [1, 3] takes 3"),
        ([[1, 2]], "data has 2 elements, shape [1, 3] takes 3"),
        ([[1, 2, 3], [4, 5, 6]], "data has 2 lists at depth 1, shape [1, 3] takes 1"),
        ([[[1], [2], [3]]], "nested deeper"),
        ([1, 2, [3]], "element 2 is a list"),
        ([[1], 2, [3]], "data has 3 lists at depth 1"),
        ("123", "data must be a list"),
        ({"a": 1}, "data must be a list"),
        (None, "neither data nor binary_data_size"),
        ([1, 2, 1e39], "element 2 is 1e+39, outside the range of FP32"),
        ([1, 2, True], "element 2 is a boolean"),
        ([1, 2, None], "element 2 is null"),
    ],
)
def test_wrong_data_says_which_element(data, message):
    error = refused({"inputs": [x(data=data)]})
    assert message in error.message
    assert error.param == "inputs.x.data"


def test_ragged_data():
    a = {"name": "a", "datatype": "INT32", "shape": [2, 2], "data": [[1, 2, 3], [4]]}
    b = {"name": "b", "datatype": "BYTES", "shape": [2, 1], "data": ["s", "t"]}
    assert "ragged at depth 1" in refused({"inputs": [a, b]}, codec=PAIR).message
    a["data"] = [[1, 2], [3, 4]]
    assert parse({"inputs": [a, b]}, codec=PAIR).rows == 2


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (None, "inputs must be a list of tensors; the model takes x"),
        ({}, "inputs must be a list"),
        ([], "0 inputs are given, the model takes 1: x; x is missing"),
        ([x(), x()], "2 inputs are given"),
        ([x(name="y")], "there is no input 'y'; the model takes x"),
        ([x(name=None)], "an object with a name"),
        ([x(name=["x"])], "an object with a name"),
        ([[]], "an object with a name"),
        (["x"], "an object with a name"),
        ([x(datatype="INT32")], "datatype is 'INT32', expected 'FP32'"),
        ([x(datatype=None)], "datatype is None, expected 'FP32'"),
        ([x(dtype="FP32")], "field 'dtype' is not known"),
    ],
)
def test_wrong_inputs_are_named(inputs, message):
    assert message in refused({"inputs": inputs}).message


def test_an_input_given_twice():
    a = {"name": "a", "datatype": "INT32", "shape": [1, 2], "data": [1, 2]}
    assert "'a' is given twice" in refused({"inputs": [a, a]}, codec=PAIR).message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "the body is empty"),
        (b"{", "no valid JSON"),
        (b"[]", "must be a JSON object"),
        (b'"a"', "must be a JSON object"),
        (b"\xff", "no valid JSON"),
        (b"[" * 100_000, "no valid JSON"),
        (b'{"inputs": [NaN', "no valid JSON"),
        (b'{"inputs": "' + b'\\"' * 50_000, "no valid JSON"),
    ],
)
def test_what_is_no_json(text, message):
    assert message in refused(text).message


def test_unknown_fields_and_wrong_types_of_the_request():
    assert "field 'output' is not known" in refused({"inputs": [x()], "output": []}).message
    assert refused({"inputs": [x()], "id": 7}).message == "id must be a string"
    assert refused({"inputs": [x()], "outputs": {}}).message == "outputs must be a list"
    assert refused({"inputs": [x()], "parameters": []}).param == "parameters"
    assert refused({"inputs": [x()], "model_name": 1}).param == "model_name"


# ------------------------------------------------------------------------------------ binary data


@pytest.mark.parametrize(
    ("parameters", "binary", "message"),
    [
        ({"binary_data_size": 12}, bytes(11), "12, but 11 bytes are left after the JSON"),
        ({"binary_data_size": 12}, bytes(13), "1 bytes follow the last tensor"),
        ({"binary_data_size": 8}, bytes(8), "8 bytes of data, but shape [1, 3] of FP32 takes 12"),
        ({"binary_data_size": -12}, bytes(12), "must be a whole number of bytes, not -12"),
        ({"binary_data_size": 12.0}, bytes(12), "must be a whole number of bytes"),
        ({"binary_data_size": True}, bytes(12), "must be a whole number of bytes"),
        ({"binary_data_size": 10**18}, bytes(12), "bytes are left"),
        ({"shared_memory_region": "r"}, bytes(12), "shared memory is not offered"),
        ({"content_type": "np"}, bytes(12), "content_type is not known here"),
        (["binary_data_size"], bytes(12), "must be an object"),
        ({}, bytes(12), "neither data nor binary_data_size"),
    ],
)
def test_wrong_binary_inputs(parameters, binary, message):
    entry = x(data=None, parameters=parameters)
    assert message in refused({"inputs": [entry]}, binary).message


def test_binary_and_json_data_exclude_each_other():
    entry = x(parameters={"binary_data_size": 12})
    assert "both data and binary_data_size" in refused({"inputs": [entry]}, bytes(12)).message
    # Some clients write null for what they do not send.
    null = {**x(parameters={"binary_data_size": 12}), "data": None}
    assert parse({"inputs": [null]}, bytes(12)).rows == 1


def test_binary_data_without_the_header():
    entry = x(data=None, parameters={"binary_data_size": 12})
    message = refused({"inputs": [entry]}).message
    assert "0 bytes are left" in message and "Inference-Header-Content-Length" in message


def test_empty_tensors():
    for entry in (
        {"name": "v", "datatype": "INT64", "shape": [2, 0], "data": []},
        {"name": "v", "datatype": "INT64", "shape": [2, 0], "data": [[], []]},
        {"name": "v", "datatype": "INT64", "shape": [2, 0], "parameters": {"binary_data_size": 0}},
    ):
        request = parse({"inputs": [entry]}, codec=VARIABLE)
        assert request.inputs[0].shape == (2, 0) and len(request.inputs[0].data) == 0


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (join_strings([b"a", b"b"]), "2 elements of BYTES, but shape [1, 1] takes 1"),
        (join_strings([b"abc"])[:-1], "the lengths of its elements take 7 bytes, it has 6"),
        (b"\x00\x00", "the lengths of its elements take 0 bytes, it has 2"),
        (b"\xff\xff\xff\xff", "it has 4"),
    ],
)
def test_wrong_binary_strings(raw, message):
    a = {"name": "a", "datatype": "INT32", "shape": [1, 2], "data": [1, 2]}
    b = {"name": "b", "datatype": "BYTES", "shape": [1, 1]}
    b["parameters"] = {"binary_data_size": len(raw)}
    assert message in refused({"inputs": [a, b]}, raw, PAIR).message


def test_a_header_length_past_the_body():
    text = orjson.dumps({"inputs": [x()]})
    with pytest.raises(BadRequest, match=f"is {len(text) + 1}, but the body has {len(text)}"):
        parse_infer(text, len(text) + 1, CODEC)
    assert parse_infer(text, len(text), CODEC).rows == 1


# ------------------------------------------------------------------------------------- anything


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(["name", "shape", "datatype", "data", "parameters", "inputs", "outputs",
                         "binary_data_size", "id", "x", "binary_data", "classification"]),
        inner, max_size=5),
    max_leaves=12,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(["inputs", "outputs", "parameters", "id"]), _JSON), _JSON)
def test_no_json_does_more_than_be_refused(document, entry):
    candidates = (
        document,
        {**document, "inputs": [entry]},
        {"inputs": [x()], "outputs": entry},
        {"inputs": [x(data=entry)]},
        {"inputs": [x(parameters=entry)]},
    )
    for candidate in candidates:
        try:
            parse(candidate)
        except BadRequest as error:
            assert error.message
