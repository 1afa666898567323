"""A request gets the same answer in whatever company it was executed; malformed frames only ever
raise BadFrame. The oracle is the same request alone."""

from __future__ import annotations

import orjson
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from backends.errors import BadFrame
from backends.tensor.codec import TORCH, bytes_of, tensor_of
from backends.tensor.executor import Executor
from backends.tensor.job import Job
from backends.tensor.loading import Version
from backends.tensor.reply import result_frame
from backends.tensor.runner import Runner
from backends.wire import Decoder, Frame, Kind, Signature, TensorSpec
from tests.backends.fakes import RaggedSum, Words, doubled, execute_frame, unpack

CPU = torch.device("cpu")


def run_frames(model, *frames):
    """Each frame's answers, all frames executed together."""
    answers = {}
    runner = Runner(CPU, lambda error, rows: None)
    executor = Executor(runner, lambda given, batch: answers.update(given))
    executor.serve(Version("1-a", model, model.signature), None)
    jobs = [Job(None, frame, model.signature, arrived=0.0) for frame in frames]
    executor(jobs)
    return [unpack(Decoder().feed(b"".join(result_frame(job, answers[job])))[0]) for job in jobs]


def values(datatype, shape):
    """A tensor of that kind; small numbers, so that sums are exact."""
    count = 1
    for dim in shape:
        count *= dim
    top = 1 if datatype == "BOOL" else 7
    low = 0 if datatype == "BOOL" or datatype.startswith("U") else -7
    return st.lists(st.integers(low, top), min_size=count, max_size=count).map(
        lambda flat: torch.tensor(flat).reshape(shape).to(TORCH[datatype])
    )


@st.composite
def traffic(draw, front):
    """Frames of requests whose variable dimension differs."""
    datatype = draw(st.sampled_from(sorted(TORCH)))
    frames = []
    for _ in range(draw(st.integers(1, 3))):
        requests = []
        for _ in range(draw(st.integers(1, 3))):
            rows, length = draw(st.integers(0, 2)), draw(st.integers(0, 4))
            requests.append({"x": draw(values(datatype, (rows, *(2,) * front, length)))})
        frames.append(requests)
    return datatype, frames


@pytest.mark.parametrize("ragged", ["refuse", "pad", "concat"])
@pytest.mark.parametrize("front", [0, 1])
def test_company_changes_nothing(ragged, front):
    @given(traffic(front))
    def check(made):
        datatype, frames = made
        model = RaggedSum(ragged, datatype, front)
        together = run_frames(
            model, *[execute_frame(model.signature, requests) for requests in frames]
        )
        for requests, answers in zip(frames, together, strict=True):
            for request, answer in zip(requests, answers, strict=True):
                x = request["x"]
                # Of a request without rows, nobody can say how long its outputs would have been.
                assert torch.equal(answer["twice"], doubled(x)) or not len(x)
                assert torch.equal(answer["sum"], x.double().flatten(1).sum(1, keepdim=True))

    check()


def test_padding_is_to_the_longest_and_lengths_say_what_is_real():
    model = RaggedSum("pad")
    requests = [{"x": torch.ones(1, 6)}, {"x": torch.ones(2, 8)}]
    answers = run_frames(model, execute_frame(model.signature, requests))
    assert model.seen == [(3, 8)]
    assert [tuple(answer["twice"].shape) for answer in answers[0]] == [(1, 6), (2, 8)]


def test_short_rows_are_not_padded_to_long_ones():
    model = RaggedSum("pad")
    requests = [{"x": torch.ones(1, 2)}, {"x": torch.ones(2, 50)}, {"x": torch.ones(1, 2)}]
    answers = run_frames(model, execute_frame(model.signature, requests))
    assert sorted(model.seen) == [(2, 2), (2, 50)]
    assert [tuple(answer["twice"].shape) for answer in answers[0]] == [(1, 2), (2, 50), (1, 2)]


def test_concatenation_joins_rows_without_padding():
    model = RaggedSum("concat")
    requests = [{"x": torch.ones(1, 2)}, {"x": torch.ones(2, 5)}]
    run_frames(model, execute_frame(model.signature, requests))
    assert model.seen == [(12,)]


def test_refusing_runs_unequal_shapes_apart():
    model = RaggedSum("refuse")
    requests = [{"x": torch.ones(1, 2)}, {"x": torch.ones(2, 5)}, {"x": torch.ones(1, 2)}]
    answers = run_frames(model, execute_frame(model.signature, requests))
    assert model.seen == [(2, 2), (2, 5)]
    assert [answer["sum"].tolist() for answer in answers[0]] == [[[2.0]], [[5.0], [5.0]], [[2.0]]]


@given(
    st.lists(
        st.lists(st.tuples(st.binary(max_size=5), st.binary(max_size=5)), max_size=3),
        min_size=1,
        max_size=4,
    ).filter(lambda requests: all(requests))
)
def test_strings_go_through(requests):
    frame = execute_frame(
        Words.signature, [{"text": [list(row) for row in rows]} for rows in requests]
    )
    (answers,) = run_frames(Words(), frame)
    for rows, answer in zip(requests, answers, strict=True):
        assert answer["upper"] == [word.upper() for row in rows for word in row]
        assert answer["size"].tolist() == [[len(a), len(b)] for a, b in rows]


# ------------------------------------------------------------------------------------------- codec


@pytest.mark.parametrize("datatype", sorted(TORCH))
@pytest.mark.parametrize("shape", [(3, 2), (0, 2), (2, 0)])
def test_every_datatype_round_trips(datatype, shape):
    tensor = torch.arange(shape[0] * shape[1]).reshape(shape).to(TORCH[datatype])
    data = bytes(bytes_of(tensor))
    assert len(data) == tensor.numel() * TORCH[datatype].itemsize
    assert torch.equal(tensor_of([memoryview(data)], datatype, shape), tensor)
    if shape[0] == 3:
        row = len(data) // 3
        parts = [memoryview(data)[:row], memoryview(data)[row:]]
        assert torch.equal(tensor_of(parts, datatype, shape), tensor)


def test_bytes_that_may_be_written_to_are_borrowed_if_they_are_aligned():
    data = bytearray(20)
    aligned = tensor_of([memoryview(data)[:16]], "FP32", (4,))
    shifted = tensor_of([memoryview(data)[1:17]], "FP32", (4,))
    constant = tensor_of([memoryview(bytes(data))[:16]], "FP32", (4,))
    data[:] = b"\xff" * 20
    assert aligned.isnan().all()
    assert not shifted.any() and not constant.any()
    for tensor in (aligned, shifted, constant):
        assert tensor.data_ptr() % 4 == 0


def test_any_byte_but_zero_is_true():
    tensor = tensor_of([memoryview(b"\x00\x01\x02\xff")], "BOOL", (4,))
    assert tensor.tolist() == [False, True, True, True]
    assert int(tensor.sum()) == 3


# ------------------------------------------------------------------------------------------ frames

SIGNATURE = Signature(
    (TensorSpec("x", "FP32", (-1, 2)), TensorSpec("s", "BYTES", (1,))),
    (TensorSpec("y", "FP32", (1,)),),
    max_batch_size=4,
    ragged="pad",
)
GOOD = {
    "inputs": [["x", "FP32", [2, 3, 2]], ["s", "BYTES", [2, 1]]],
    "rows": [1, 1],
    "sizes": [48, 11],
}
DATA = bytes(48) + b"\x03\0\0\0abc" + b"\0\0\0\0"


def job_of(meta, data=DATA):
    frame = Frame(Kind.EXECUTE, 1, orjson.dumps(meta), memoryview(data))
    return Job(None, frame, SIGNATURE, arrived=100.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rows": [1, 2]}, "input 'x' has 2 rows, rows name 3"),
        ({"rows": [3, -1]}, "whole numbers"),
        ({"rows": [1.0, 1.0]}, "whole numbers"),
        ({"rows": None}, "TypeError"),
        ({"sizes": [48]}, "shorter"),
        ({"sizes": [48, 12]}, "11 are left"),
        ({"sizes": [48, 10]}, "sizes name 58 bytes, the frame carries 59"),
        ({"sizes": [40, 19]}, "40 bytes are not FP32 [2, 3, 2]"),
        ({"sizes": [-48, 11]}, "-48 bytes"),
        ({"inputs": [["x", "FP32", [2, 3, 2]]], "sizes": [59]}, "59 bytes are not"),
        ({"inputs": [["x", "FP64", [2, 3, 2]], GOOD["inputs"][1]]}, "is FP64, expected FP32"),
        ({"inputs": [["z", "FP32", [2, 3, 2]], GOOD["inputs"][1]]}, "'z' is not one of x, s"),
        ({"inputs": [GOOD["inputs"][0], GOOD["inputs"][0]]}, "stands twice"),
        ({"inputs": [["x", "FP32", [2, 2, 3]], GOOD["inputs"][1]]}, "expected [batch, -1, 2]"),
        ({"inputs": [["x", "FP32", [2, 6]], GOOD["inputs"][1]]}, "[batch, 6]"),
        ({"inputs": [["x", "FP32", []], GOOD["inputs"][1]]}, "IndexError"),
        ({"shapes": {"x": [[1, 2, 2]]}}, "shapes of input 'x' do not follow rows"),
        ({"shapes": {"x": [[1, 2, 2], [1, 3, 2]]}}, "not what shapes say"),
        ({"deadlines_ms": [5.0]}, "1 deadlines_ms, 2 requests"),
        ({"deadlines_ms": ["soon", "later"]}, "TypeError"),
        ({"version": 7}, "version must be a string"),
    ],
)
def test_a_frame_that_contradicts_itself_is_refused_with_the_reason(change, said):
    with pytest.raises(BadFrame) as found:
        job_of({**GOOD, **change})
    assert said in found.value.message


def test_too_many_rows_are_refused():
    meta = {"inputs": [["x", "FP32", [5, 0, 2]], ["s", "BYTES", [5, 1]]], "rows": [5]}
    with pytest.raises(BadFrame, match="max_batch_size of 4"):
        job_of({**meta, "sizes": [0, 0]}, b"")


@pytest.mark.parametrize(
    "tail", [b"\x03\0\0\0abc\0\0\0", b"\xff\xff\xff\xff" + bytes(7), bytes(8) + b"abc", bytes(4)]
)
def test_malformed_strings_are_refused(tail):
    meta = {**GOOD, "sizes": [48, len(tail)]}
    with pytest.raises(BadFrame, match="BYTES elements"):
        job_of(meta, bytes(48) + tail).pieces()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 70) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=6,
)


@given(
    st.dictionaries(
        st.sampled_from(["inputs", "rows", "sizes", "shapes", "deadlines_ms", "version"]),
        json_values,
    ),
    st.binary(max_size=70),
)
def test_no_meta_raises_anything_but_bad_frame(change, data):
    for body in (data, DATA):
        try:
            job = job_of({**GOOD, **change}, body)
            job.pieces(job.expired(101.0))
        except BadFrame:
            pass


def test_the_deadline_of_each_request_is_its_own():
    job = job_of({**GOOD, "deadlines_ms": [None, 20.0]})
    assert job.expires == pytest.approx(100.02)
    assert job.expired(100.019) == []
    assert job.expired(100.021) == [1]
    assert [piece.first for piece in job.pieces([1])] == [0]
    assert job_of({**GOOD, "deadlines_ms": [None, None]}).expired(1e9) == []
