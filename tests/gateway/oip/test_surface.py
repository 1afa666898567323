"""Everything of the surface but infer: what it says of itself and of its models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest

from backends.wire import Signature, TensorSpec
from gateway.errors import NoReplica
from gateway.oip import ModelStats, OipSurface
from gateway.request import Answer
from tests.gateway.oip.fakes import FakeDirectory, FakeExchange, FakeModel, FakeSwitchable

pytestmark = pytest.mark.interpreted


def ask(
    surface: OipSurface, method: str, path: str, body: Any = b"", headers: Any = ()
) -> FakeExchange:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    exchange = FakeExchange(method, path, raw, headers)
    handler = surface.resolve(method, path)
    assert handler is not None and not handler.streams
    handler(exchange)
    assert exchange.answers == 1
    return exchange


def make(*models: FakeModel, **options: Any) -> OipSurface:
    return OipSurface(FakeDirectory(*models), **options)


def test_what_is_not_under_v2_is_another_surfaces():
    surface = make(FakeModel())
    for path in ("/", "/v1/models", "/v2x", "/v20/models/m/infer", "/metrics"):
        assert surface.resolve("GET", path) is None
        assert surface.resolve("POST", path) is None


def test_live_and_ready():
    model = FakeSwitchable("m")
    surface = make(model, FakeModel("n"))
    assert ask(surface, "GET", "/v2/health/live").json() == {"live": True}
    assert ask(surface, "GET", "/v2/health/ready").json() == {"ready": True}
    assert ask(surface, "GET", "/v2/models/m/ready").json() == {"name": "m", "ready": True}
    model.ready = False
    for path in ("/v2/health/ready", "/v2/models/m/ready"):
        exchange = ask(surface, "GET", path)
        assert exchange.status == 503
        assert exchange.json()["ready"] is False
        assert exchange.error == "no replica of model 'm' is ready"
    assert ask(surface, "GET", "/v2/models/n/ready").status == 200
    assert ask(surface, "GET", "/v2/health/live").status == 200
    # Somebody took it out of service: that is no lack of readiness.
    model.unloaded = True
    assert ask(surface, "GET", "/v2/health/ready").status == 200
    assert ask(surface, "GET", "/v2/models/m/ready").status == 503


def test_versions_that_can_be_asked_for():
    surface = make(FakeModel("m"))
    for version in ("2-def", "2"):
        assert ask(surface, "GET", f"/v2/models/m/versions/{version}/ready").status == 200
    for path in ("/ready", "/config", "", "/stats"):
        exchange = ask(surface, "GET", f"/v2/models/m/versions/9{path}")
        assert exchange.status == 404 and "'9'" in exchange.error


def test_server_metadata_advertises_what_can_be_done():
    told = ask(make(FakeModel()), "GET", "/v2").json()
    assert told["name"] == "penstock" and told["version"]
    assert told["extensions"] == [
        "binary_tensor_data", "classification", "model_configuration", "schedule_policy",
        "statistics",
    ]  # fmt: skip
    told = ask(make(FakeModel(), FakeSwitchable("s")), "GET", "/v2").json()
    assert "model_repository" in told["extensions"]


def test_model_metadata_and_configuration():
    signature = Signature(
        (TensorSpec("a", "BYTES", (-1, 2)), TensorSpec("b", "FP32", ())),
        (TensorSpec("c", "BF16", (3,)),),
        max_batch_size=32,
        ragged="concat",
    )
    model = FakeModel("m", signature)
    model.max_batch_size = 16  # the operator allows fewer
    surface = make(model)
    assert ask(surface, "GET", "/v2/models/m").json() == {
        "name": "m",
        "versions": ["3-abc", "2-def"],
        "platform": "penstock",
        "inputs": [
            {"name": "a", "datatype": "BYTES", "shape": [-1, -1, 2]},
            {"name": "b", "datatype": "FP32", "shape": [-1]},
        ],
        "outputs": [{"name": "c", "datatype": "BF16", "shape": [-1, 3]}],
    }
    config = ask(surface, "GET", "/v2/models/m/config").json()
    assert config["max_batch_size"] == 16
    first = config["input"][0]
    assert (first["data_type"], first["dims"]) == ("TYPE_STRING", [-1, 2])
    assert first["allow_ragged_batch"] and not config["input"][1]["allow_ragged_batch"]
    assert config["output"] == [{"name": "c", "data_type": "TYPE_BF16", "dims": [3]}]
    assert config["dynamic_batching"]["priority_levels"] == 5
    assert config["model_transaction_policy"] == {"decoupled": False}


def test_a_model_that_no_replica_has_described_yet():
    surface = make(FakeModel("m", None))
    for path in ("", "/config"):
        exchange = ask(surface, "GET", f"/v2/models/m{path}")
        # When one will, nobody knows yet: no promise.
        assert exchange.status == 503 and "retry-after" not in exchange.fields


def test_a_model_without_tensors():
    model = FakeModel("m", None)
    model.kind = "llm"
    exchange = ask(make(model), "GET", "/v2/models/m")
    assert exchange.status == 501 and "of kind llm" in exchange.error


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/v2/models/nope", 404, "no model 'nope'"),
        ("GET", "/v2/models/nope/ready", 404, "no model 'nope'"),
        ("POST", "/v2/models/nope/infer", 404, "no model 'nope'"),
        ("POST", "/v2/models/nope/versions/1/infer", 404, "no model 'nope'"),
        ("DELETE", "/v2/models/nope", 404, "no model 'nope'"),
        ("POST", "/v2/repository/models/nope/load", 404, "no model 'nope'"),
        ("GET", "/v2/models/m/nope", 404, "no model 'm/nope'"),
        ("GET", "/v2/nope", 404, "nothing at /v2/nope"),
        ("GET", "/v2/systemsharedmemory/status", 501, "not offered"),
        ("POST", "/v2/cudasharedmemory/region/r/register", 501, "not offered"),
        ("GET", "/v2/trace/setting", 501, "not offered"),
        ("POST", "/v2/models/m/trace/setting", 501, "not offered"),
        ("POST", "/v2/logging", 501, "not offered"),
        ("POST", "/v2/models/m/generate", 501, "not offered"),
        ("POST", "/v2/models/m/versions/3-abc/generate_stream", 501, "not offered"),
        ("POST", "/v2/repository/models/m/load", 501, "cannot be loaded"),
        ("POST", "/v2/repository/models/m/unload", 501, "cannot be loaded or unloaded"),
    ],
)
def test_what_is_not_there_says_so(method, path, status, message):
    exchange = ask(make(FakeModel("m")), method, path, b"left unread by nobody")
    assert exchange.status == status
    assert message in exchange.error


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v2/models/m/infer", "POST"),
        ("HEAD", "/v2/models/m/infer", "POST"),
        ("PUT", "/v2/models/m/infer", "POST"),
        ("POST", "/v2/models/m", "GET"),
        ("POST", "/v2", "GET"),
        ("POST", "/v2/models/stats", "GET"),
        ("GET", "/v2/repository/index", "POST"),
        ("DELETE", "/v2/logging", "GET, POST"),
        ("OPTIONS", "/v2/health/live", "GET"),
    ],
)
def test_the_wrong_verb_names_the_right_one(method, path, allow):
    exchange = ask(make(FakeModel("m")), method, path)
    assert exchange.status == 405
    assert exchange.fields["allow"] == allow
    assert path in exchange.error and method in exchange.error


def test_head_is_get_and_a_closing_slash_is_nothing():
    surface = make(FakeModel("m"))
    assert ask(surface, "HEAD", "/v2/health/live").status == 200
    assert ask(surface, "GET", "/v2/").json()["name"] == "penstock"
    assert ask(surface, "GET", "/v2/models/m/").json()["name"] == "m"


# -------------------------------------------------------------------------------------- statistics


def lines(exchange: FakeExchange) -> list[tuple[str, str, int]]:
    return [
        (line["name"], line["version"], line["inference_count"])
        for line in exchange.json()["model_stats"]
    ]


def test_statistics_of_one_version_one_model_and_all():
    first, second = FakeModel("m"), FakeModel("n")
    first.stats.succeeded(Answer((), "2-def", "r", 1, 1, 5), 5, 0.1)
    first.stats.succeeded(Answer((), "1-old", "r", 1, 1, 7), 7, 0.1)
    surface = make(first, second)
    # By step, for clients that read versions as numbers.
    of_first = [("m", "3", 0), ("m", "2", 5), ("m", "1", 7)]
    assert lines(ask(surface, "GET", "/v2/models/m/versions/2-def/stats")) == of_first[1:2]
    # It is no longer served, and what it did is still known.
    assert lines(ask(surface, "GET", "/v2/models/m/versions/1-old/stats")) == of_first[2:]
    assert lines(ask(surface, "GET", "/v2/models/m/stats")) == of_first
    assert lines(ask(surface, "GET", "/v2/models/m/versions/1/stats")) == of_first[2:]
    everything = [*of_first, ("n", "3", 0), ("n", "2", 0)]
    assert lines(ask(surface, "GET", "/v2/models/stats")) == everything


def test_statistics_are_those_of_all_workers_where_there_are_several():
    model = FakeModel("m")
    whole = ModelStats()
    whole.succeeded(Answer((), "3-abc", "r", 1, 1, 5), 5, 0.1)
    asked: list[Callable[..., None]] = []
    surface = make(model, gather=asked.append)
    exchange = FakeExchange("GET")
    surface.resolve("GET", "/v2/models/m/versions/3-abc/stats")(exchange)
    assert exchange.answers == 0
    asked[0]({"m": whole})
    assert lines(exchange) == [("m", "3", 5)]

    failed = FakeExchange("GET")
    surface.resolve("GET", "/v2/models/m/stats")(failed)
    asked[1](NoReplica("a worker did not answer"))
    assert failed.status == 503 and failed.error == "a worker did not answer"

    unknown = FakeExchange("GET")
    surface.resolve("GET", "/v2/models/m/versions/9/stats")(unknown)
    asked[2]({})
    assert unknown.status == 404


# -------------------------------------------------------------------------------------- repository


def test_the_index():
    broken = FakeModel("n")
    broken.ready = False
    surface = make(FakeModel("m"), broken)
    ready = [
        {"name": "m", "version": version, "state": "READY", "reason": ""}
        for version in ("3-abc", "2-def")
    ]
    reason = "no replica of model 'n' is ready"
    rest = [{"name": "n", "version": "", "state": "UNAVAILABLE", "reason": reason}]
    assert ask(surface, "POST", "/v2/repository/index").json() == ready + rest
    assert ask(surface, "POST", "/v2/repository/index", {"ready": False}).json() == ready + rest
    assert ask(surface, "POST", "/v2/repository/index", {"ready": True}).json() == ready


def test_unload_and_load():
    model = FakeSwitchable("m")
    surface = make(model)
    body = {"parameters": {"unload_dependents": False}}
    assert ask(surface, "POST", "/v2/repository/models/m/unload", body).json() == {}
    assert not model.ready
    index = ask(surface, "POST", "/v2/repository/index").json()
    assert index == [{"name": "m", "version": "", "state": "UNAVAILABLE", "reason": "unloaded"}]
    assert ask(surface, "POST", "/v2/repository/models/m/load").json() == {}
    assert model.ready


def test_a_load_that_fails_says_why():
    model = FakeSwitchable("m")
    model.failing = NoReplica("replica m-0 is unreachable", retry_after=2.2)
    exchange = ask(make(model), "POST", "/v2/repository/models/m/load", {"parameters": {}})
    assert exchange.status == 503 and exchange.error == "replica m-0 is unreachable"
    assert exchange.fields["retry-after"] == "3"


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("models/m/load", {"parameters": {"config": "{}"}}, "parameters.config: a model is loaded"),
        ("models/m/load", {"parameters": {"file:1/m.pt": "AA=="}}, "nothing can be overridden"),
        ("models/m/load", {"parameters": []}, "parameters must be an object"),
        ("models/m/load", {"param": {}}, "field 'param' is not known; expected parameters"),
        ("models/m/unload", {"parameters": {"unload_dependents": 1}}, "true or false"),
        ("models/m/unload", {"parameters": {"force": True}}, "the only parameter is"),
        ("index", {"ready": 1}, "ready must be true or false"),
        ("index", {"name": "m"}, "field 'name' is not known"),
        ("index", [], "must be a JSON object"),
        ("index", b"{", "no valid JSON"),
    ],
)
def test_repository_requests_that_are_refused(path, body, message):
    model = FakeSwitchable("m")
    exchange = ask(make(model), "POST", f"/v2/repository/{path}", body)
    assert exchange.status == 400 and message in exchange.error
    assert model.ready


def test_an_act_that_breaks_is_answered_and_logged(caplog):
    model = FakeModel("m")
    model.versions = None  # type: ignore[assignment]
    exchange = ask(make(model), "GET", "/v2/models/m")
    assert exchange.status == 500
    assert exchange.error == "the gateway failed on this request"
    assert "TypeError" in caplog.text
