"""Frames however they are cut, with `websockets` as the other end."""

from __future__ import annotations

import struct

import hypothesis.strategies as st
import pytest
from hypothesis import given
from websockets.exceptions import ProtocolError
from websockets.frames import Close

from gateway.ws.frames import (
    BINARY,
    CLOSE,
    CONTINUED,
    PING,
    PONG,
    TEXT,
    Broken,
    FrameReader,
    close_frame,
    frame,
    read_close,
)
from tests.gateway.ws.fakes import client_frame, read_frames

SIZES = st.one_of(st.integers(0, 300), st.sampled_from([125, 126, 127, 65_535, 65_536, 70_000]))
PAYLOADS = st.builds(
    lambda size, seed: bytes((seed + 7 * at) % 256 for at in range(size)),
    SIZES,
    st.integers(0, 255),
)


def drained(reader: FrameReader) -> list[tuple[int, bytes]]:
    out = []
    while (event := reader.next()) is not None:
        out.append((event[0], bytes(event[1])))
    return out


def cut(raw: bytes, at: list[int]) -> list[bytes]:
    ends = sorted({a % (len(raw) + 1) for a in at} | {len(raw)})
    return [raw[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@st.composite
def conversations(draw):
    """(what was meant, the frames that say it): fragmented, with control frames in between."""
    meant, raw = [], b""
    for _ in range(draw(st.integers(1, 4))):
        opcode, payload = draw(st.sampled_from([TEXT, BINARY])), draw(PAYLOADS)
        parts = cut(payload, draw(st.lists(st.integers(0, 70_000), max_size=3)))
        for number, part in enumerate(parts):
            if draw(st.integers(0, 4)) == 0:
                control = draw(st.sampled_from([PING, PONG])), draw(st.binary(max_size=125))
                meant.append(control)
                raw += client_frame(*control)
            kind = CONTINUED if number else opcode
            raw += client_frame(kind, part, fin=number == len(parts) - 1)
        meant.append((opcode, payload))
    return meant, raw


@given(conversations(), st.lists(st.integers(0, 300_000), max_size=8))
def test_what_was_sent_is_read_however_it_is_cut(conversation, cuts):
    meant, raw = conversation
    reader, got = FrameReader(1 << 20), []
    for piece in cut(raw, cuts):
        reader.feed(piece)
        got += drained(reader)
    assert got == meant and reader.pending == 0


@given(conversations())
def test_byte_by_byte_is_the_same(conversation):
    meant, raw = conversation
    raw = raw[:3000]
    whole, single = FrameReader(1 << 20), FrameReader(1 << 20)
    whole.feed(raw)
    got = []
    for at in range(len(raw)):
        single.feed(raw[at : at + 1])
        got += drained(single)
    assert got == drained(whole) == meant[: len(got)]
    assert single.pending == whole.pending


@given(conversations(), st.integers(1, 400))
def test_messages_may_be_taken_later_than_they_come(conversation, size):
    meant, raw = conversation
    reader, got = FrameReader(1 << 20), []
    for start in range(0, len(raw), size * 97):
        reader.feed(raw[start : start + size * 97])
        event = reader.next()
        if event is not None:
            got.append((event[0], bytes(event[1])))
    assert got + drained(reader) == meant


@given(st.binary(max_size=400), st.integers(1, 50))
def test_any_bytes_are_messages_or_break_and_never_grow(raw, size):
    reader = FrameReader(100)
    try:
        for start in range(0, len(raw), size):
            reader.feed(raw[start : start + size])
            drained(reader)
            # One frame's head, one fragment and one piece that was just read.
            assert reader.pending <= 100 + 125 + 14 + size
    except Broken as broken:
        assert broken.code in (1002, 1009) and broken.reason


@given(st.sampled_from([TEXT, BINARY, PING, PONG]), PAYLOADS)
def test_what_we_write_is_read_by_others(opcode, payload):
    if opcode in (PING, PONG):
        payload = payload[:125]
    (read,) = read_frames(frame(opcode, payload))
    assert (read.opcode, read.data, read.fin) == (opcode, payload, True)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"\x81\x00", 1002),  # not masked
        (b"\xc1\x80\0\0\0\0", 1002),  # a reserved bit: no extension was agreed on
        (b"\x83\x80\0\0\0\0", 1002),  # an opcode that nobody knows
        (b"\x09\x80\0\0\0\0", 1002),  # a ping in fragments
        (b"\x89\xfe\0\x7e" + bytes(4), 1002),  # a ping of 126 bytes
        (b"\x80\x80\0\0\0\0", 1002),  # a fragment of nothing
        (client_frame(TEXT, b"a", fin=False) + client_frame(TEXT, b"b"), 1002),
        (b"\x82\xff" + struct.pack(">Q", 101) + bytes(4), 1009),
        (b"\x82\xff" + b"\xff" * 8 + bytes(4), 1009),
        (client_frame(TEXT, b"a" * 60, fin=False) + b"\x80\xa9" + bytes(4), 1009),
    ],
    ids=range(10),  # masks are random, and a test needs a name
)
def test_what_breaks_the_protocol_is_told_at_the_head(raw, code):
    reader = FrameReader(100)
    with pytest.raises(Broken) as caught:
        reader.feed(raw)
        drained(reader)
    assert caught.value.code == code


@pytest.mark.parametrize("code", [*range(990, 1020), 2999, 3000, 4999, 5000, 65_535])
def test_close_codes_are_judged_as_others_judge_them(code):
    payload = struct.pack(">H", code) + "wegen Überfüllung".encode()
    try:
        theirs = Close.parse(payload)
        theirs.check()
    except ProtocolError:
        with pytest.raises(Broken):
            read_close(payload)
    else:
        assert read_close(payload) == code


def test_a_close_without_a_code_is_one():
    assert read_close(b"") == 1005
    for broken, code in ((b"\x03", 1002), (b"\x03\xe8\xff", 1007)):
        with pytest.raises(Broken) as caught:
            read_close(broken)
        assert caught.value.code == code


def test_a_long_reason_is_cut_at_a_character():
    (read,) = read_frames(close_frame(1011, "ü" * 100))
    assert read.opcode == CLOSE
    assert Close.parse(read.data) == Close(1011, "ü" * 61)
