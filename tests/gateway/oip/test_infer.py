"""Infer calls between exchange and model: deadlines, names, headers, errors, one answer each."""

from __future__ import annotations

import asyncio
import gzip
import struct
import zlib
from typing import Any

import orjson
import pytest

from backends.wire import TensorSpec
from gateway.errors import DeadlineExceeded, ModelFailed, ReplicaFault, Shed
from gateway.oip import OipSurface
from gateway.oip.infer import MAX_TERMS
from gateway.request import Answer, Tensor, TensorRequest
from tests.gateway.oip.fakes import (
    FakeDirectory,
    FakeExchange,
    FakeModel,
    answered,
    echo_answer,
    echo_signature,
)

pytestmark = pytest.mark.interpreted

X = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
BODY = orjson.dumps({"inputs": [X]})


def call(
    model: FakeModel, body: Any = BODY, *headers: tuple[bytes, bytes], path: str = ""
) -> FakeExchange:
    surface = OipSurface(FakeDirectory(model))
    path = path or f"/v2/models/{model.name}/infer"
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    exchange = FakeExchange("POST", path, raw, headers)
    handler = surface.resolve("POST", path)
    assert handler is not None
    handler(exchange)
    return exchange


def test_a_call_and_its_answer():
    model = FakeModel()
    exchange = call(model, {"id": "7", "inputs": [X]}, (b"x-request-id", b"r-1"))
    assert exchange.status == 200 and exchange.content_type == b"application/json"
    told = exchange.json()
    assert (told["model_name"], told["model_version"], told["id"]) == ("simple", "3-abc", "7")
    assert [output["data"] for output in told["outputs"]] == [[1, 2, 3], [0]]
    assert exchange.fields == {
        "x-request-id": "r-1",
        "x-model-version": "3-abc",
        "x-served-by": "replica-0",
    }
    (request,) = model.submitted
    assert (request.rows, request.key, request.arrived) == (1, (), 100.0)
    assert (request.deadline, request.priority) == (float("inf"), 0)
    assert (request.session, request.version) == (None, None)


def test_requests_without_an_id_get_one_each():
    model = FakeModel()
    surface = OipSurface(FakeDirectory(model))
    ids = set()
    for _ in range(3):
        exchange = FakeExchange(body=BODY)
        surface.resolve("POST", "/v2/models/simple/infer")(exchange)
        ids.add(exchange.fields["x-request-id"])
    assert len(ids) == 3


@pytest.mark.parametrize(
    ("headers", "parameters", "deadline"),
    [
        ([(b"x-deadline-ms", b"250")], {}, 100.25),
        ([], {"timeout": 500_000}, 100.5),
        ([(b"x-deadline-ms", b"250")], {"timeout": 500_000}, 100.25),
        ([(b"x-deadline-ms", b"750")], {"timeout": 500_000}, 100.5),
        ([(b"x-deadline-ms", b"750")], {"timeout": 0}, 100.75),
    ],
)
def test_the_smaller_deadline_wins(headers, parameters, deadline):
    model = FakeModel()
    call(model, {"inputs": [X], "parameters": parameters}, *headers)
    assert model.submitted[0].deadline == deadline


def test_session_priority_and_version_reach_the_model():
    model = FakeModel()
    headers = [(b"x-session-id", b"s"), (b"x-priority", b"7")]
    call(model, BODY, *headers, path="/v2/models/simple/versions/2-def/infer")
    (request,) = model.submitted
    assert (request.session, request.priority, request.version) == ("s", 7, "2-def")
    call(model, path="/v2/models/simple/versions/2/infer")
    assert model.submitted.pop().version == "2-def"
    # The parameter is nearer to the request than the header.
    call(model, {"inputs": [X], "parameters": {"priority": 5}}, *headers)
    assert model.submitted[1].priority == -2


def test_a_header_pins_the_version_as_the_path_does():
    model = FakeModel()
    call(model, BODY, (b"x-model-version", b"2-def"))
    assert model.submitted.pop().version == "2-def"
    call(model, BODY, (b"x-model-version", b"2"))
    assert model.submitted.pop().version == "2-def"
    path = "/v2/models/simple/versions/2/infer"
    call(model, BODY, (b"x-model-version", b"2"), path=path)
    assert model.submitted.pop().version == "2-def"
    refused = call(model, BODY, (b"x-model-version", b"3-abc"), path=path)
    assert refused.status == 400 and "x-model-version" in refused.json()["error"]
    assert call(model, BODY, (b"x-model-version", b"9")).status == 404
    assert not model.submitted


def test_timing_is_told_to_those_who_ask():
    exchange = call(FakeModel(), BODY, (b"x-timing", b"1"))
    assert exchange.fields["server-timing"] == 'queue;dur=1.500, compute;dur=2.500, batch;desc="1"'
    assert "server-timing" not in call(FakeModel(), BODY, (b"x-timing", b"0")).fields


def test_binary_both_ways():
    raw = struct.pack("<6f", *range(6))
    entry = {"name": "x", "shape": [2, 3], "datatype": "FP32"}
    entry["parameters"] = {"binary_data_size": 24}
    head = orjson.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}})
    length = (b"inference-header-content-length", b"%d" % len(head))
    exchange = call(FakeModel(), head + raw, length)
    assert exchange.content_type == b"application/octet-stream"
    end = int(exchange.fields["inference-header-content-length"])
    assert exchange.reply[end:] == raw + struct.pack("<2q", 0, 1)
    assert orjson.loads(exchange.reply[:end])["outputs"][1]["shape"] == [2]


def test_a_raw_body():
    raw = struct.pack("<3f", 4, 5, 6)
    exchange = call(FakeModel(), raw, (b"inference-header-content-length", b"0"))
    assert exchange.reply.endswith(raw + bytes(8))


@pytest.mark.parametrize(
    ("outcome", "status", "retry_after"),
    [
        (Shed("too much", retry_after=0.2), 429, "1"),
        (Shed("too much"), 429, None),
        (DeadlineExceeded("late"), 504, None),
        (ModelFailed("the model raised"), 500, None),
        (ReplicaFault(418, "teapot", "short and stout"), 418, None),
    ],
)
def test_errors_of_the_model(outcome, status, retry_after):
    exchange = call(FakeModel(run=lambda request: outcome), BODY, (b"x-request-id", b"r"))
    assert (exchange.status, exchange.error) == (status, outcome.message)
    assert exchange.json() == {"error": outcome.message}
    assert exchange.fields.get("retry-after") == retry_after
    assert exchange.fields["x-request-id"] == "r"


@pytest.mark.parametrize(
    ("body", "headers", "message"),
    [
        (b"{", [], "no valid JSON"),
        (BODY, [(b"inference-header-content-length", b"-1")], "header inference-header"),
        (BODY, [(b"inference-header-content-length", b"9999")], "but the body has"),
        (BODY, [(b"x-deadline-ms", b"soon")], "x-deadline-ms"),
        ({"inputs": [X], "model_name": "other"}, [], "model_name is 'other' in the body"),
        ({"inputs": [X], "model_version": "1"}, [], "the path names none"),
    ],
)
def test_wrong_requests_never_reach_the_model(body, headers, message):
    model = FakeModel()
    exchange = call(model, body, *headers)
    assert exchange.status == 400 and message in exchange.error
    assert exchange.answers == 1 and not model.submitted


def test_the_body_may_name_the_model_that_the_path_names():
    body = {"inputs": [X], "model_name": "simple", "model_version": "2-def"}
    assert call(FakeModel(), body, path="/v2/models/simple/versions/2-def/infer").status == 200


def test_the_operators_limit_on_rows():
    model = FakeModel()
    model.max_batch_size = 2
    for rows, status in ((2, 200), (3, 400)):
        entry = X | {"shape": [rows, 3], "data": [0] * 3 * rows}
        exchange = call(model, {"inputs": [entry]})
        assert exchange.status == status
    assert "the max_batch_size of model 'simple' is 2" in exchange.error


def test_unknown_versions_and_models_without_a_replica():
    path = "/v2/models/simple/versions/9/infer"
    exchange = call(FakeModel(), path=path)
    assert exchange.status == 404 and "it has 3-abc, 2-def" in exchange.error
    # While nothing is ready nobody knows which versions there are: the model decides.
    model = FakeModel()
    model.ready = False
    assert call(model, path=path).status == 200 and model.submitted
    assert call(FakeModel(signature=None)).status == 503
    model = FakeModel(signature=None)
    model.kind = "llm"
    assert call(model).status == 501


# ------------------------------------------------------------------------------- the one answer


def test_a_client_that_goes_cancels_and_hears_nothing():
    model = FakeModel()
    model.held = True
    exchange = call(model)
    (request,) = model.submitted
    cancelled: list[TensorRequest] = []
    request.cancel = cancelled.append
    assert exchange.on_gone is not None
    exchange.on_gone()
    assert cancelled == [request] and request.finished
    model.release(request)
    assert exchange.answers == 0


def test_a_model_that_breaks_in_submit_is_answered_once(caplog):
    model = FakeModel()

    def broken(request: TensorRequest) -> Answer:
        raise RuntimeError("a fault of ours")

    model.run = broken
    exchange = call(model)
    assert exchange.status == 500 and exchange.answers == 1
    assert exchange.error == "the gateway failed on this request"
    assert "a fault of ours" in caplog.text
    assert model.submitted[0].finished


def test_a_fault_after_the_answer_is_logged_and_answers_nothing(caplog):
    model = FakeModel()
    submit = model.submit

    def then_break(request: TensorRequest) -> None:
        submit(request)
        raise RuntimeError("late fault")

    model.submit = then_break  # type: ignore[method-assign]
    exchange = call(model)
    assert exchange.status == 200 and exchange.answers == 1
    assert "late fault" in caplog.text


def test_answers_that_are_none():
    exchange = call(FakeModel(run=lambda request: answered(request)))
    assert exchange.status == 502 and "lacks the output 'y'" in exchange.error
    version = "3\r\nset-cookie: x"
    outcome = Answer((Tensor("y", "FP32", (1, 3), bytes(12)),), version, "r", 0, 0, 1)
    body = {"inputs": [X], "outputs": [{"name": "y"}]}
    assert call(FakeModel(run=lambda request: outcome), body).status == 500


def test_a_new_signature_counts_at_once():
    model = FakeModel()
    surface = OipSurface(FakeDirectory(model))

    def ask(body: Any) -> FakeExchange:
        exchange = FakeExchange(body=orjson.dumps(body))
        surface.resolve("POST", "/v2/models/simple/infer")(exchange)
        return exchange

    assert ask({"inputs": [X]}).status == 200
    model.signature, model.run = echo_signature(TensorSpec("z", "INT8", (1,))), echo_answer
    assert ask({"inputs": [X]}).status == 400
    z = {"name": "z", "shape": [1, 1], "datatype": "INT8", "data": [-7]}
    assert ask({"inputs": [z]}).json()["outputs"][0]["data"] == [-7]


def test_a_model_that_goes_is_unknown_at_once():
    directory = FakeDirectory(FakeModel())
    surface = OipSurface(directory)
    path = "/v2/models/simple/infer"
    for status in (200, 404):
        exchange = FakeExchange(body=BODY)
        surface.resolve("POST", path)(exchange)
        assert exchange.status == status
        directory.by_name.clear()


def test_shared_header_lists_are_read_once_and_never_mixed_up():
    model = FakeModel()
    surface = OipSurface(FakeDirectory(model))
    handler = surface.resolve("POST", "/v2/models/simple/infer")
    shared = [(b"x-session-id", b"one")]
    for turn in range(3000):
        exchange = FakeExchange(body=BODY)
        exchange.headers = shared if turn % 2 else [(b"x-session-id", b"%d" % turn)]
        handler(exchange)
        assert model.submitted.pop().session == ("one" if turn % 2 else str(turn))
    assert len(surface._desk._terms) <= MAX_TERMS


# ------------------------------------------------------------------------------------ compression


def text_model(size: int) -> tuple[FakeModel, dict[str, Any]]:
    signature = echo_signature(TensorSpec("t", "BYTES", ()))
    model = FakeModel("text", signature, echo_answer)
    return model, {
        "inputs": [{"name": "t", "shape": [1], "datatype": "BYTES", "data": ["a" * size]}]
    }


@pytest.mark.parametrize(
    ("coding", "decode"), [(b"gzip", gzip.decompress), (b"deflate", zlib.decompress)]
)
def test_answers_are_compressed_for_those_who_ask(coding, decode):
    exchange = call(*text_model(5000), (b"accept-encoding", coding))
    assert exchange.fields["content-encoding"] == coding.decode()
    assert len(exchange.reply) < 300
    assert orjson.loads(decode(exchange.reply))["outputs"][0]["data"] == ["a" * 5000]


def test_what_is_small_and_what_is_wrong_is_not_compressed():
    exchange = call(*text_model(10), (b"accept-encoding", b"gzip"))
    assert "content-encoding" not in exchange.fields and exchange.json()
    model, _ = text_model(10)
    exchange = call(model, {"inputs": [], "x" * 5000: 1}, (b"accept-encoding", b"gzip"))
    assert exchange.status == 400 and exchange.error


async def test_large_answers_are_compressed_beside_the_loop():
    exchange = call(*text_model(200_000), (b"accept-encoding", b"gzip"))
    assert exchange.answers == 0
    answered_ = asyncio.Event()
    exchange.on_answer = answered_.set
    await asyncio.wait_for(answered_.wait(), 10)
    data = orjson.loads(gzip.decompress(exchange.reply))["outputs"][0]["data"]
    assert data == ["a" * 200_000]


@pytest.mark.parametrize("size", [1000, 200_000])
async def test_an_answer_that_cannot_be_compressed_is_an_error_and_no_silence(size, monkeypatch):
    def broken(pieces: Any, coding: bytes) -> bytes:
        raise zlib.error("inconsistent stream state")

    monkeypatch.setattr("gateway.oip.infer.compress", broken)
    exchange = call(*text_model(size), (b"accept-encoding", b"gzip"))
    if not exchange.answers:
        answered_ = asyncio.Event()
        exchange.on_answer = answered_.set
        await asyncio.wait_for(answered_.wait(), 10)
    assert (exchange.status, exchange.error) == (500, "the gateway failed on this request")
