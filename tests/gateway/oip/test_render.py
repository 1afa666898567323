"""Answers: their forms, their bytes, and what a client reads out of them."""

from __future__ import annotations

import struct

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.http import InferResult

from backends.wire import Signature, TensorSpec
from gateway.errors import BadRequest, ReplicaNonsense
from gateway.oip import Codec, InferRequest, render_infer
from gateway.oip.parameters import Wanted
from gateway.oip.render import BINARY, JSON
from gateway.oip.values import join_strings
from gateway.request import Answer, Tensor
from tests.gateway.oip.fakes import DTYPES
from tests.gateway.oip.test_parse import tensors

SIGNATURE = Signature(
    (TensorSpec("x", "FP32", ()),),
    (TensorSpec("y", "FP32", (3,), labels=("cat", "dog")), TensorSpec("s", "BYTES", ())),
)
CODEC = Codec(SIGNATURE)
Y = Tensor("y", "FP32", (2, 3), memoryview(struct.pack("<6f", 0.1, 3, 2, 5, 5, float("nan"))))
S = Tensor("s", "BYTES", (2,), memoryview(join_strings(["é".encode(), b"b"])))


def render(*wanted: Wanted, id: str | None = None, outputs: tuple[Tensor, ...] = (Y, S)):
    request = InferRequest(id, (), 2, (), wanted)
    return render_infer(request, "m", Answer(outputs, "7-f", "r", 1, 2, 3), CODEC)


def test_json_only():
    content_type, fields, body = render(Wanted(1, False, 0), id="7")
    assert (content_type, fields) == (JSON, b"")
    assert isinstance(body, bytes)
    output = {"name": "s", "datatype": "BYTES", "shape": [2], "data": ["é", "b"]}
    expected = {"model_name": "m", "model_version": "7-f", "id": "7", "outputs": [output]}
    assert orjson.loads(body) == expected
    assert "id" not in orjson.loads(render(Wanted(1, False, 0)).body)


def test_binary_outputs_follow_in_the_order_of_the_list():
    content_type, fields, body = render(Wanted(1, True, 0), Wanted(0, True, 0))
    assert content_type == BINARY
    head = orjson.loads(body[0])
    assert fields == b"inference-header-content-length: %d\r\n" % len(body[0])
    assert [output["parameters"] for output in head["outputs"]] == [
        {"binary_data_size": 11},
        {"binary_data_size": 24},
    ]
    # Passed on, not copied.
    assert body[1] is S.data and body[2] is Y.data


def test_nan_in_json_is_the_string_that_numpy_reads():
    body = render(Wanted(0, False, 0)).body
    data = orjson.loads(body)["outputs"][0]["data"]
    assert data[5] == "NaN"
    assert np.array_equal(np.array(data, "f4"), np.frombuffer(Y.data, "f4"), equal_nan=True)


@pytest.mark.parametrize(
    ("classes", "shape", "expected"),
    [
        (1, [2, 1], ["3.000000:1:dog", "5.000000:0:cat"]),
        (2, [2, 2], ["3.000000:1:dog", "2.000000:2", "5.000000:0:cat", "5.000000:1:dog"]),
        (9, [2, 3], ["3.000000:1:dog", "2.000000:2", "0.100000:0:cat",
                     "5.000000:0:cat", "5.000000:1:dog", "nan:2"]),
    ],
)  # fmt: skip
def test_classes(classes, shape, expected):
    output = orjson.loads(render(Wanted(0, False, classes)).body)["outputs"][0]
    assert output == {"name": "y", "datatype": "BYTES", "shape": shape, "data": expected}
    body = render(Wanted(0, True, classes)).body
    assert bytes(body[1]) == join_strings([text.encode() for text in expected])


def test_classes_of_integers_and_of_nothing():
    signature = Signature((), (TensorSpec("k", "UINT64", (-1,)),))
    request = InferRequest(None, (), 1, (), (Wanted(0, False, 2),))

    def classes(shape: tuple[int, ...], *values: int) -> list[str]:
        tensor = Tensor("k", "UINT64", shape, struct.pack(f"<{len(values)}Q", *values))
        answer = Answer((tensor,), "1", "r", 0, 0, 1)
        return orjson.loads(render_infer(request, "m", answer, Codec(signature)).body)["outputs"][0]

    assert classes((1, 3), 2**64 - 1, 0, 2**64 - 2)["data"] == [
        "18446744073709551615:0",
        "18446744073709551614:2",
    ]
    empty = classes((2, 0))
    assert empty["shape"] == [2, 0] and empty["data"] == []


def test_outputs_in_another_order_are_found_by_name():
    body = render(Wanted(0, True, 0), outputs=(S, Y)).body
    assert orjson.loads(body[0])["outputs"][0]["name"] == "y"


def test_an_answer_that_lacks_an_output():
    with pytest.raises(ReplicaNonsense, match="lacks the output 's'"):
        render(Wanted(1, True, 0), outputs=(Y,))


def test_an_answer_whose_bytes_are_no_tensor():
    broken = Y._replace(data=memoryview(bytes(23)))
    with pytest.raises(ReplicaNonsense, match="output 'y': 23 bytes"):
        render(Wanted(0, False, 0), outputs=(broken, S))
    with pytest.raises(ReplicaNonsense, match="output 'y'"):
        render(Wanted(0, False, 1), outputs=(broken, S))


def test_bytes_that_json_cannot_carry():
    broken = S._replace(data=join_strings([b"\xff", b"b"]))
    with pytest.raises(BadRequest, match=r"output 's': element 0 is no UTF-8.* binary_data"):
        render(Wanted(1, False, 0), outputs=(Y, broken))
    assert len(render(Wanted(1, True, 0), outputs=(Y, broken)).body) == 2


@given(st.data())
def test_tritonclient_reads_what_was_rendered(data):
    """Every datatype, any mix of binary and JSON."""
    specs, outputs, wanted = [], [], []
    for at, datatype in enumerate(
        data.draw(st.lists(st.sampled_from(DTYPES), min_size=1, max_size=4))
    ):
        shape = (2, data.draw(st.integers(0, 2)))
        raw = data.draw(tensors(datatype, 1, shape))
        specs.append(TensorSpec(f"o{at}", datatype, (-1,)))
        outputs.append(Tensor(f"o{at}", datatype, shape, memoryview(raw)))
        # The client reads BF16 from binary only.
        wanted.append(Wanted(at, datatype == "BF16" or data.draw(st.booleans()), 0))
    request = InferRequest("i", (), 2, (), tuple(wanted))
    codec = Codec(Signature((), tuple(specs)))
    rendered = render_infer(request, "m", Answer(tuple(outputs), "1", "r", 0, 0, 1), codec)
    body = rendered.body if isinstance(rendered.body, bytes) else b"".join(rendered.body)
    length = rendered.fields.decode().strip().partition(": ")[2]
    result = InferResult.from_response_body(body, header_length=length or None)
    for tensor, form in zip(outputs, wanted, strict=True):
        array = result.as_numpy(tensor.name)
        assert array.shape == tensor.shape
        if tensor.datatype == "BYTES":
            items = [i if isinstance(i, bytes) else i.encode() for i in array.ravel().tolist()]
            assert join_strings(items) == bytes(tensor.data)
        elif form.binary:
            assert array.tobytes() == bytes(tensor.data)
        else:
            expected = np.frombuffer(tensor.data, array.dtype).reshape(array.shape)
            np.testing.assert_array_equal(array, expected)
