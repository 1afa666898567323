"""Requests on one socket: answered in any order, cancelled, refused, each with one message."""

from __future__ import annotations

import struct

import hypothesis.strategies as st
import pytest
from hypothesis import given

from gateway.errors import Shed
from gateway.ws import SocketLimits
from tests.gateway.oip.fakes import FakeModel, simple_answer
from tests.gateway.ws.fakes import Talk, X, binary, client_frame, handshake, infer, text

PACKED = struct.pack("<3f", 1, 2.5, -3)


def held() -> FakeModel:
    model = FakeModel()
    model.held = True
    return model


async def test_a_request_is_answered_under_its_id():
    message = await Talk().send(infer("a")).one()
    assert message["type"] == "result" and message["id"] == "a"
    assert message["model_name"] == "simple" and message["model_version"] == "3-abc"
    assert message["served_by"] == "replica-0" and "timing" not in message
    assert [output["data"] for output in message["outputs"]] == [[1, 2.5, -3], [0]]


async def test_tensors_come_and_go_as_they_are():
    x = {"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": 12}}
    document = {
        "type": "infer", "id": "b", "model_name": "simple", "inputs": [x],
        "parameters": {"binary_data_output": True},
    }  # fmt: skip
    answer, tensors = await Talk().send(binary(document, PACKED)).one()
    assert answer["type"] == "result" and answer["id"] == "b"
    sizes = [output["parameters"]["binary_data_size"] for output in answer["outputs"]]
    assert sizes == [12, 8] and tensors == PACKED + bytes(8)


async def test_answers_come_in_the_order_in_which_they_are_ready():
    talk = Talk(held()).send(infer("a"), infer("b"), infer("c"))
    assert await talk.said() == []
    for at in (2, 0, 1):
        talk.model.release(talk.model.submitted[at])
    assert [message["id"] for message in await talk.said()] == ["c", "a", "b"]
    assert talk.surface.held == 0


async def test_a_request_may_ask_for_version_session_deadline_and_priority():
    more = {"model_version": "2", "session": "s", "deadline_ms": 250, "priority": 9}
    talk = Talk(held()).send(infer("a", **more))
    (request,) = talk.model.submitted
    assert (request.version, request.session, request.priority) == ("2-def", "s", 9)
    assert request.deadline == request.arrived + 0.25 == talk.clock.now + 0.25


async def test_the_headers_of_the_handshake_hold_for_all_requests():
    head = handshake("x-session-id: s", "x-priority: 3", "x-deadline-ms: 100", "x-timing: 1")
    talk = Talk(held(), head=head).send(infer("a"), infer("b", session="t", priority=-1))
    first, second = talk.model.submitted
    assert (first.session, first.priority) == ("s", 3)
    assert (second.session, second.priority) == ("t", -1)
    assert first.deadline == talk.clock.now + 0.1
    talk.model.release(first)
    assert (await talk.one())["timing"] == {"queue_ms": 1.5, "compute_ms": 2.5, "batch": 1}


async def test_the_earlier_of_two_deadlines_counts():
    talk = Talk(held()).send(infer("a", deadline_ms=500, parameters={"timeout": 1000}))
    assert talk.model.submitted[0].deadline == talk.clock.now + 0.001


@pytest.mark.parametrize(
    ("change", "status", "named"),
    [
        ({"model_name": None}, 400, "model_name"),
        ({"model_name": 3}, 400, "model_name"),
        ({"model_name": "none"}, 404, "none"),
        ({"model_version": "99"}, 404, "99"),
        ({"inputs": []}, 400, "inputs"),
        ({"inputs": [{**X, "data": [1]}]}, 400, "x"),
        ({"inputs": [{**X, "shape": [9, 3], "data": [1] * 27}]}, 400, "max_batch_size"),
        ({"sessoin": "s"}, 400, "sessoin"),
        ({"priority": "high"}, 400, "priority"),
        ({"parameters": {"beams": 3}}, 400, "beams"),
        ({"type": "generate"}, 501, "stream"),
        ({"type": "infre"}, 400, "infre"),
    ],
)
async def test_a_bad_request_fails_alone(change, status, named):
    talk = Talk().send(infer("bad", **change), infer("good"))
    error, result = await talk.said()
    assert error["type"] == "error" and error["id"] == "bad" and error["status"] == status
    assert named in error["message"]
    assert result["id"] == "good" and result["type"] == "result"
    assert talk.surface.held == 0


async def test_a_model_that_refuses_or_raises_costs_its_request():
    model = FakeModel(run=lambda request: Shed("full", retry_after=2.0))
    error = await Talk(model).send(infer("a")).one()
    assert error["code"] == "overloaded" and error["retry_after_ms"] == 2000

    def broken(request):
        raise RuntimeError("a bug")

    talk = Talk(FakeModel(run=broken)).send(infer("a"))
    error = await talk.one()
    assert error["status"] == 500 and "bug" not in error["message"]
    talk.model.run = simple_answer
    assert (await talk.send(infer("a")).one())["type"] == "result"


async def test_cancel_ends_a_request_at_once_and_only_once():
    talk = Talk(held()).send(infer("a"), infer("b"), text({"type": "cancel", "id": "a"}))
    error = await talk.one()
    assert (error["type"], error["id"], error["status"]) == ("error", "a", 499)
    assert error["code"] == "cancelled"
    first, second = talk.model.submitted
    assert first.finished and not second.finished
    talk.model.release(first)
    talk.model.release(second)
    assert (await talk.one())["id"] == "b"
    # It had ended, and nobody knows the other: nothing to say.
    talk.send(text({"type": "cancel", "id": "a"}), text({"type": "cancel", "id": "zz"}))
    assert await talk.said() == []


async def test_an_id_may_be_used_again_once_its_request_has_ended():
    talk = Talk(held()).send(infer("a"))
    talk.model.release(talk.model.submitted[0])
    talk.send(infer("a"))
    talk.model.release(talk.model.submitted[1])
    assert [message["id"] for message in await talk.said()] == ["a", "a"]


async def test_an_id_in_use_is_no_other_requests():
    talk = Talk(held()).send(infer("a"), infer("a"))
    assert await talk.one() == 1008
    assert talk.model.submitted[0].finished


async def test_pings_of_both_kinds_are_answered():
    talk = Talk().send(client_frame(9, b"are you there"), text({"type": "ping", "id": "p"}))
    assert await talk.said() == [("PONG", b"are you there"), {"type": "pong", "id": "p"}]
    # Of several that come together the last one is answered.
    talk.send(client_frame(9, b"1") + client_frame(9, b"2") + client_frame(10, b"unasked"))
    assert await talk.said() == [("PONG", b"2")]


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (text(b"{"), 1007),
        (text([1]), 1007),
        (text({"type": "infer"}), 1007),
        (client_frame(2, b"{}"), 1007),
        (binary({"type": "cancel", "id": "a"}, b"x"), 1003),
        (b"\x81\x01a", 1002),
        (client_frame(1, b"x" * 2000), 1009),
        (client_frame(8, b"\x03\xe8bye"), 1000),
        (client_frame(8, struct.pack(">H", 4321)), 4321),
        (client_frame(8, b""), 1000),
        (client_frame(8, b"\x03"), 1002),
    ],
    ids=range(11),  # masks are random, and a test needs a name
)
async def test_the_code_says_why_a_socket_closes(raw, code):
    model = held()
    talk = Talk(model, limits=SocketLimits(max_message=1000)).send(infer("a"), raw, infer("late"))
    assert await talk.one() == code
    assert talk.transport.eof_written and len(model.submitted) == 1
    assert model.submitted[0].finished
    stats = talk.surface.stats
    assert stats.open == 0 and stats.abandoned == 1 and talk.surface.held == 0
    # Nothing is left behind, and the end of the connection changes nothing more.
    talk.wire.eof()
    assert talk.transport.closed and sum(stats.closed.values()) == 1


@pytest.mark.parametrize("way", ["reset", "end"])
async def test_a_client_that_leaves_takes_its_requests_along(way):
    talk = Talk(held()).send(infer("a"), infer("b"), infer("c")[:20])
    assert talk.surface.held > 0
    if way == "reset":
        talk.transport.close()
    else:
        talk.wire.eof()
    assert all(request.finished for request in talk.model.submitted)
    for request in talk.model.submitted:
        talk.model.release(request)
    stats = talk.surface.stats
    assert (stats.open, stats.abandoned, dict(stats.closed)) == (0, 2, {1006: 1})
    assert talk.surface.held == 0 and talk.transport.closed
    assert await talk.said() == []


async def test_many_messages_in_one_read_leave_room_for_others():
    talk = Talk(held(), limits=SocketLimits(max_in_flight=1000))
    talk.send(b"".join(infer(str(number)) for number in range(200)))
    assert len(talk.model.submitted) < 100 and not talk.transport.reading
    assert await talk.said() == []
    assert len(talk.model.submitted) == 200 and talk.transport.reading


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.randoms())
async def test_every_request_gets_exactly_one_terminal_message(steps, random):
    """Requests, answers and cancels in any order, on few ids."""
    model = held()
    talk = Talk(model, limits=SocketLimits(max_in_flight=4))
    sent, ended = 0, []
    for step in steps:
        live = [r for r in model.submitted if not r.finished]
        if step < 5:
            talk.send(infer(f"r{sent}"))
            sent += 1
        elif step < 8 and live:
            model.release(random.choice(live))
        elif sent:
            talk.send(text({"type": "cancel", "id": f"r{random.randrange(sent)}"}))
        ended += [message["id"] for message in await talk.said()]
    for request in model.submitted:
        if not request.finished:
            model.release(request)
    ended += [message["id"] for message in await talk.said()]
    assert sorted(ended) == sorted(f"r{number}" for number in range(sent))
    assert talk.surface.held == 0


async def test_the_handshakes_version_holds_where_a_message_names_none():
    model = FakeModel()
    talk = Talk(model, head=handshake("x-model-version: 2"))
    talk.send(infer("a"), infer("b", model_version="3-abc"))
    assert [request.version for request in model.submitted] == ["2-def", "3-abc"]
    wrong = Talk(FakeModel(), head=handshake("x-model-version: 77"))
    wrong.send(infer("a"))
    message = await wrong.one()
    assert (message["type"], message["status"]) == ("error", 404)
