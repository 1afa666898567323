"""What is gathered into a frame comes back cut into each request's rows, or as a named fault."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import wire
from backends.wire import Decoder, Fault, Kind, WireError
from gateway.batch import gather, split
from gateway.errors import GatewayError
from gateway.request import Answer, Tensor, TensorRequest


def request(rows: int, values: list[float], *, shape=(2,), deadline=float("inf")) -> TensorRequest:
    data = struct.pack(f"<{len(values)}f", *values)
    tensor = Tensor("x", "FP32", (rows, *shape), memoryview(data))
    return TensorRequest((tensor,), rows, "k", lambda outcome: None, arrived=0.0, deadline=deadline)


def result(heads, rows, data, **more):
    sizes = [len(part) for part in data]
    fields = {"version": "1-a", "queue_us": 5, "compute_us": 7, "batch": sum(rows), **more}
    meta = wire.result_meta(heads, rows, sizes=sizes, **fields)
    return Decoder().feed(b"".join(wire.encode(Kind.RESULT, 1, meta, data)))[0]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_rows_come_back_to_their_requests(counts):
    values = [float(n) for n in range(2 * sum(counts))]
    batch, at = [], 0
    for count in counts:
        batch.append(request(count, values[at : at + 2 * count]))
        at += 2 * count
    meta, data = gather(batch, now=0.0)
    assert meta["inputs"] == [("x", "FP32", (sum(counts), 2))]
    assert meta["rows"] == counts
    assert meta["sizes"] == [8 * sum(counts)]
    frame = result([("y", "FP32", [sum(counts), 2])], counts, [b"".join(data)])
    _, outcomes = split(frame, batch, "r-0", sent=0.5)
    for sent, outcome in zip(batch, outcomes, strict=True):
        assert isinstance(outcome, Answer)
        assert outcome.outputs[0].shape == (sent.rows, 2)
        assert bytes(outcome.outputs[0].data) == bytes(sent.inputs[0].data)
        assert (outcome.version, outcome.replica, outcome.batch) == ("1-a", "r-0", sum(counts))
        assert outcome.queue_us == 500_005


def test_requests_of_different_lengths_say_their_own_shapes():
    batch = [request(1, [1.0, 2.0], shape=(2,)), request(1, [1.0, 2.0, 3.0], shape=(3,))]
    meta, _ = gather(batch, now=0.0)
    assert meta["inputs"] == [("x", "FP32", (2, -1))]
    assert meta["shapes"] == {"x": [(1, 2), (1, 3)]}


def test_answers_of_different_lengths_are_cut_by_their_shapes():
    batch = [request(1, [0.0, 0.0]), request(1, [0.0, 0.0])]
    data = struct.pack("<5f", 1, 2, 3, 4, 5)
    shapes = {"y": [[1, 2], [1, 3]]}
    frame = result([("y", "FP32", [2, -1])], [1, 1], [data], shapes=shapes)
    _, outcomes = split(frame, batch, "r", sent=0.0)
    assert [outcome.outputs[0].shape for outcome in outcomes] == [(1, 2), (1, 3)]
    assert bytes(outcomes[1].outputs[0].data) == struct.pack("<3f", 3, 4, 5)


def test_strings_are_cut_where_they_end():
    batch = [request(1, [0.0, 0.0]), request(2, [0.0] * 4)]
    words = [b"", b"a", b"bcd"]
    data = b"".join(struct.pack("<I", len(word)) + word for word in words)
    _, outcomes = split(result([("y", "BYTES", [3, 1])], [1, 2], [data]), batch, "r", sent=0.0)
    assert bytes(outcomes[0].outputs[0].data) == b"\0\0\0\0"
    assert bytes(outcomes[1].outputs[0].data) == data[4:]


def test_the_failed_request_gets_its_fault_and_the_others_their_rows():
    batch = [request(1, [0.0, 0.0]), request(1, [0.0, 0.0])]
    fault = Fault(status=500, code="model_error", message="digit 7 broke it").to_json()
    frame = result([("y", "FP32", [1, 2])], [0, 1], [bytes(8)], errors={"0": fault})
    _, (failed, good) = split(frame, batch, "r", sent=0.0)
    assert isinstance(failed, GatewayError)
    assert (failed.status, failed.code, failed.message) == (500, "model_error", "digit 7 broke it")
    assert isinstance(good, Answer)


def test_deadlines_travel_as_time_left():
    batch = [request(1, [0.0, 0.0], deadline=10.5), request(1, [0.0, 0.0])]
    meta, _ = gather(batch, now=10.0)
    assert meta["deadlines_ms"] == [500.0, None]


@pytest.mark.parametrize(
    ("heads", "rows", "data", "message"),
    [
        ([("y", "FP32", [1, 2])], [1], [bytes(8)], "answers 1 requests"),
        ([("y", "FP32", [2, 2])], [1, 1], [bytes(12)], "12 bytes are not 2 rows"),
        ([("y", "FP32", [3, 2])], [1, 2], [bytes(24)], "2 rows for a request of 1"),
        ([("y", "BYTES", [2, 1])], [1, 1], [b"\x09\0\0\0a"], "takes|ends in the middle|its rows"),
        ([("y", "BYTES", [2, 1])], [1, 1], [b"\0\0"], "ends in the middle"),
    ],
)
def test_results_that_do_not_fit_are_refused(heads, rows, data, message):
    batch = [request(1, [0.0, 0.0]), request(1, [0.0, 0.0])]
    with pytest.raises(WireError, match=message):
        split(result(heads, rows, data), batch, "r", sent=0.0)
