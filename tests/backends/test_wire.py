"""Frames survive any cut; anything that is no frame is refused before memory is taken for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import wire
from backends.wire import HEADER, MAGIC, SCRATCH, VERSION, Decoder, Kind, Piece, WireError

frames = st.lists(
    st.tuples(
        st.sampled_from(list(Kind)),
        st.integers(0, 2**64 - 1),
        st.one_of(st.none(), st.dictionaries(st.text(max_size=5), st.integers(-9, 9), max_size=3)),
        st.lists(st.binary(max_size=300), max_size=3),
    ),
    max_size=6,
)


@given(frames, st.lists(st.integers(1, 200), min_size=1, max_size=50))
def test_any_cut_yields_the_same_frames(sent, cuts):
    stream = b"".join(b"".join(wire.encode(k, i, m, d)) for k, i, m, d in sent)
    decoder, got, at, turn = Decoder(), [], 0, 0
    while at < len(stream):
        size = cuts[turn % len(cuts)]
        got += decoder.feed(stream[at : at + size])
        at, turn = at + size, turn + 1
    assert [(f.kind, f.id, f.json(), bytes(f.data)) for f in got] == [
        (k, i, m if m is not None else {}, b"".join(d)) for k, i, m, d in sent
    ]


@given(st.integers(SCRATCH - 40, SCRATCH + 40), st.integers(1, SCRATCH * 2))
def test_frames_around_the_scratch_size(size, cut):
    payload = bytes(size)
    stream = b"".join(wire.encode(Kind.EXECUTE, 7, {"a": 1}, [payload]) * 1)
    stream += b"".join(wire.encode(Kind.PING, 8))
    decoder, got = Decoder(), []
    for at in range(0, len(stream), cut):
        got += decoder.feed(stream[at : at + cut])
    assert [(f.kind, f.id, len(f.data)) for f in got] == [
        (Kind.EXECUTE, 7, size),
        (Kind.PING, 8, 0),
    ]


def test_earlier_frames_do_not_change_when_later_ones_arrive():
    decoder = Decoder()
    first = decoder.feed(b"".join(wire.encode(Kind.EXECUTE, 1, None, [b"aaaa"])))[0]
    decoder.feed(b"".join(wire.encode(Kind.EXECUTE, 2, None, [b"bbbb"])))
    assert bytes(first.data) == b"aaaa"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ((0x4547, VERSION, Kind.PING, 0, 0, 1), "expected a frame"),
        ((MAGIC, 9, Kind.PING, 0, 0, 1), "wire version 9"),
        ((MAGIC, VERSION, 99, 0, 0, 1), "kind 99"),
        ((MAGIC, VERSION, Kind.PING, 2**32 - 1, 2**32 - 1, 1), "over the limit"),
    ],
)
def test_what_is_no_frame_is_refused(header, message):
    with pytest.raises(WireError, match=message):
        Decoder().feed(HEADER.pack(*header))


def test_meta_that_is_no_json_is_refused():
    frame = Decoder().feed(HEADER.pack(MAGIC, VERSION, Kind.REPLY, 1, 0, 1) + b"{")[0]
    with pytest.raises(WireError, match="not JSON"):
        frame.json()


@given(st.lists(st.tuples(st.integers(0, 99), st.binary(max_size=50), st.booleans()), max_size=8))
def test_stream_pieces_round_trip(pieces):
    sent = [(Piece(id, len(data), final, {"n": 1}), data) for id, data, final in pieces]
    frame = Decoder().feed(b"".join(wire.stream_frame(sent)))[0]
    assert [(p, bytes(d)) for p, d in wire.split_stream(frame)] == sent


def test_stream_with_wrong_sizes_is_refused():
    frame = Decoder().feed(b"".join(wire.encode(Kind.STREAM, 0, [[1, 5, True, None]], [b"abc"])))[0]
    with pytest.raises(WireError, match="5 bytes"):
        wire.split_stream(frame)


def test_messages_round_trip():
    signature = wire.Signature(
        (wire.TensorSpec("x", "FP32", (-1, 4)),), (wire.TensorSpec("y", "INT64", (1,), ("a", "b")),)
    )
    assert wire.Signature.from_json(signature.to_json()) == signature
    status = wire.Status(model="m", kind="tensor", state="ready", versions=("1-a", "2-b"))
    assert wire.Status.from_json(status.to_json()) == status
    fault = wire.Fault(status=500, code="model_error", message="it broke", retryable=False)
    assert wire.Fault.from_json(fault.to_json()) == fault
    call = wire.Call(surface="chat", deadline_ms=10.5)
    assert wire.Call.from_json(call.to_json()) == call


def test_bad_specs_name_what_is_wrong():
    with pytest.raises(ValueError, match="FP31"):
        wire.TensorSpec("x", "FP31", (1,))
    with pytest.raises(ValueError, match="below -1"):
        wire.TensorSpec("x", "FP32", (-2,))
    with pytest.raises(ValueError, match="max_batch_size"):
        wire.Signature((), (), 0)
    with pytest.raises(ValueError, match="ragged"):
        wire.Signature((), (), 1, "maybe")


def test_what_a_newer_replica_says_besides_is_left_out():
    status = wire.Status(model="m", kind="tensor", state="ready")
    assert wire.Status.from_json({**status.to_json(), "of_tomorrow": 1}) == status
