"""What a message says of itself, right and wrong."""

from __future__ import annotations

import struct

import hypothesis.strategies as st
import orjson
import pytest
from hypothesis import given

from gateway.errors import BadRequest, Cancelled, Shed
from gateway.oip.terms import Terms
from gateway.ws.frames import BINARY, TEXT, Broken
from gateway.ws.messages import (
    Asked,
    asked_by,
    error_frame,
    read_id,
    read_message,
    refuse_tensors,
    take_asked,
)
from tests.gateway.ws.fakes import read_frames

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.sampled_from(["id", "type", "inputs", "x"]) | st.text(), JSON)


@given(st.sampled_from([TEXT, BINARY]), st.binary(max_size=200))
def test_any_bytes_are_a_message_or_break_with_1007(opcode, payload):
    try:
        message = read_message(opcode, payload)
    except Broken as broken:
        assert broken.code == 1007 and broken.reason
    else:
        assert type(message.type) is str and type(message.document) is dict


@given(OBJECTS, st.text(), st.binary(max_size=50))
def test_both_forms_carry_the_same_document(document, kind, tensors):
    text = orjson.dumps({**document, "type": kind})
    plain = read_message(TEXT, text)
    mixed = read_message(BINARY, struct.pack("<I", len(text)) + text + tensors)
    expected = {name: value for name, value in document.items() if name != "type"}
    assert plain.document == mixed.document == expected
    assert plain.type == mixed.type == kind
    assert not len(plain.rest) and bytes(mixed.rest) == tensors


@given(JSON, st.sampled_from([TEXT, BINARY]))
def test_json_that_is_no_message_breaks(value, opcode):
    text = orjson.dumps(value)
    payload = text if opcode == TEXT else struct.pack("<I", len(text)) + text
    if type(value) is dict and type(value.get("type")) is str:
        assert read_message(opcode, payload).type == value["type"]
    else:
        with pytest.raises(Broken):
            read_message(opcode, payload)


@pytest.mark.parametrize(
    ("opcode", "payload"),
    [
        (TEXT, b""),
        (TEXT, b'{"type":"ping"'),
        (TEXT, b'{"type":"\xff"}'),
        (TEXT, b'["type"]'),
        (TEXT, b'{"type":1}'),
        (BINARY, b"\x02\0\0"),
        (BINARY, b"\xff\xff\xff\xff{}"),
        (BINARY, b"\x00\0\0\0"),
    ],
)
def test_what_is_no_message_breaks_with_1007(opcode, payload):
    with pytest.raises(Broken) as caught:
        read_message(opcode, payload)
    assert caught.value.code == 1007


@pytest.mark.parametrize("name", [None, 1, "", "x" * 257, ["a"]])
def test_a_message_without_an_id_breaks(name):
    with pytest.raises(Broken) as caught:
        read_id({"id": name})
    assert caught.value.code == 1007
    assert read_id({"id": "x" * 256}) == "x" * 256


def test_tensors_behind_a_message_that_takes_none_break_with_1003():
    message = read_message(BINARY, b'\x0f\0\0\0{"type":"ping"}!')
    with pytest.raises(Broken) as caught:
        refuse_tensors(message)
    assert caught.value.code == 1003


def test_a_message_speaks_before_the_connection():
    usual = asked_by(Terms(session="s", deadline_s=2.0, priority=-1))
    assert take_asked({"id": "a"}, usual) == Asked("s", 2.0, -1)
    document = {"session": "t", "deadline_ms": 0.5, "priority": 7, "inputs": []}
    assert take_asked(document, usual) == Asked("t", 0.0005, 7)
    assert document == {"inputs": []}
    assert take_asked({"priority": 0}, usual) == Asked("s", 2.0, 0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("session", ""),
        ("session", "x" * 257),
        ("session", 3),
        ("session", None),
        ("deadline_ms", 0),
        ("deadline_ms", -1),
        ("deadline_ms", True),
        ("deadline_ms", "5"),
        ("deadline_ms", float("nan")),
        ("deadline_ms", 1e300),
        ("priority", 101),
        ("priority", -101),
        ("priority", 1.0),
        ("priority", False),
    ],
)
def test_what_a_field_may_be_is_said_by_its_name(field, value):
    with pytest.raises(BadRequest) as caught:
        take_asked({field: value}, Asked())
    assert caught.value.param == field and field in caught.value.message


def said(frame: bytes) -> dict[str, object]:
    (read,) = read_frames(frame)
    return orjson.loads(read.data)


def test_an_error_says_what_the_client_can_do():
    assert said(error_frame("a", BadRequest("no x", param="inputs.x"))) == {
        "type": "error", "id": "a", "status": 400, "code": "invalid_request",
        "message": "no x", "param": "inputs.x",
    }  # fmt: skip
    assert said(error_frame("b", Shed("full", retry_after=0.25))) == {
        "type": "error", "id": "b", "status": 429, "code": "overloaded",
        "message": "full", "retryable": True, "retry_after_ms": 250,
    }  # fmt: skip
    assert said(error_frame("c", Cancelled("")))["code"] == "cancelled"
