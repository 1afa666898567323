"""The table of paths, and the document that is made of it."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway.oip import OipSurface
from gateway.oip.openapi import SCHEMAS, document
from gateway.oip.routes import ROUTES, Router
from tests.gateway.oip.fakes import (
    FakeDirectory,
    FakeExchange,
    FakeGenerative,
    FakeModel,
    FakeSwitchable,
)

pytestmark = pytest.mark.interpreted


@pytest.mark.parametrize(
    ("path", "operation", "model", "version"),
    [
        ("/v2", "server_metadata", "", None),
        ("/v2/health/live", "server_live", "", None),
        ("/v2/models/stats", "statistics", "", None),
        ("/v2/models/m", "model_metadata", "m", None),
        ("/v2/models/m/versions/3", "model_metadata_version", "m", "3"),
        ("/v2/models/m/ready", "model_ready", "m", None),
        ("/v2/models/m/versions/3-a/ready", "model_ready_version", "m", "3-a"),
        ("/v2/models/m/config", "model_config", "m", None),
        ("/v2/models/m/stats", "model_statistics", "m", None),
        ("/v2/models/a%20b/stats", "model_statistics", "a b", None),
        ("/v2/models/a/b/versions/3/stats", "model_statistics_version", "a/b", "3"),
        ("/v2/models/stats/stats", "model_statistics", "stats", None),
        ("/v2/models/m/trace/setting", "model_trace_get", "m", None),
        ("/v2/systemsharedmemory/status", "system_memory_status_all", "", None),
        ("/v2/cudasharedmemory/region/r/status", "cuda_memory_status", "", None),
    ],
)
def test_paths_and_what_they_name(path, operation, model, version):
    place = Router().find(path)
    assert place is not None
    assert place.routes["GET"].operation == operation
    assert (place.model, place.version) == (model, version)


@pytest.mark.parametrize("path", ["/v2/", "/v2/health", "/v2/modelsx", "/v2/models", "/v2x", "/"])
def test_paths_that_are_nowhere(path):
    assert Router().find(path) is None


def test_operations_are_named_once():
    names = [route.operation for route in ROUTES]
    assert len(set(names)) == len(names)
    assert len({(route.method, route.template) for route in ROUTES}) == len(ROUTES)


def served(*models: FakeModel, **options: Any) -> tuple[OipSurface, dict[str, Any]]:
    surface = OipSurface(FakeDirectory(*models), **options)
    exchange = FakeExchange("GET")
    surface.resolve("GET", "/v2/openapi.json")(exchange)
    assert exchange.status == 200
    return surface, exchange.json()


def test_every_operation_of_the_document_is_there_and_no_other():
    model = FakeSwitchable("m")
    surface, told = served(model)
    offered = set()
    for template, verbs in told["paths"].items():
        path = template.format(model_name="m", model_version="3-abc")
        for verb, operation in verbs.items():
            offered.add(operation["operationId"])
            model.ready = True  # unload is among them
            exchange = FakeExchange(verb.upper(), path)
            surface.resolve(verb.upper(), path)(exchange)
            assert exchange.answers == 1
            # An empty infer request is wrong, but it found its handler.
            assert exchange.status in (200, 400), (path, exchange.reply)
    for route in ROUTES:
        path = route.template.format(model_name="m", model_version="3-abc", region_name="r")
        exchange = FakeExchange(route.method, path)
        surface.resolve(route.method, path)(exchange)
        assert (exchange.status == 501) == (route.operation not in offered)


def test_load_and_unload_are_in_the_document_only_where_they_can_be_done():
    _, told = served(FakeModel("m"))
    assert not any("load" in path for path in told["paths"])
    _, told = served(FakeModel("m"), FakeSwitchable("n"))
    assert "/v2/repository/models/{model_name}/unload" in told["paths"]


def test_generation_is_offered_by_whoever_acts_on_it():
    seen: list[tuple[str, str | None]] = []

    def act(exchange: Any, model: str, version: str | None) -> None:
        seen.append((model, version))
        exchange.respond(200)

    generative = {"generate": act, "generate_stream": act}
    _, told = served(FakeModel("m"), generative=generative)
    assert not any("generate" in path for path in told["paths"])
    surface, told = served(FakeGenerative("m"), generative=generative)
    assert "/v2/models/{model_name}/generate_stream" in told["paths"]
    surface.resolve("POST", "/v2/models/m/versions/3-abc/generate")(FakeExchange())
    assert seen == [("m", "3-abc")]
    exchange = FakeExchange("GET")
    surface.resolve("GET", "/v2")(exchange)
    assert "generate" in exchange.json()["extensions"]


def test_every_reference_of_the_document_leads_somewhere():
    told = orjson.loads(orjson.dumps(document(ROUTES, "1")))
    assert told["openapi"].startswith("3.1.")

    def references(node: Any) -> list[str]:
        if isinstance(node, dict):
            own = [node["$ref"]] if "$ref" in node else []
            return own + [ref for value in node.values() for ref in references(value)]
        return [ref for item in node for ref in references(item)] if isinstance(node, list) else []

    found = {ref.removeprefix("#/components/schemas/") for ref in references(told)}
    assert found == SCHEMAS.keys()
    for template, verbs in told["paths"].items():
        for operation in verbs.values():
            in_path = [p["name"] for p in operation["parameters"] if p["in"] == "path"]
            assert all("{" + name + "}" in template for name in in_path)
            assert template.count("{") == len(in_path)


def conforms(value: Any, schema: dict[str, Any]) -> None:
    """The keywords that our schemas use; raises AssertionError."""
    if "$ref" in schema:
        schema = SCHEMAS[schema["$ref"].rpartition("/")[2]]
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int}
    if "type" in schema:
        assert type(value) is kinds[schema["type"]], (value, schema)
    if "enum" in schema:
        assert value in schema["enum"]
    if "const" in schema:
        assert value is schema["const"]
    if "minimum" in schema:
        assert value >= schema["minimum"]
    for name in schema.get("required", ()):
        assert name in value, (name, value)
    if isinstance(value, dict):
        rest = schema.get("additionalProperties", {})
        for name, item in value.items():
            known = schema.get("properties", {}).get(name)
            assert known is not None or rest is not False, name
            conforms(item, known if known is not None else rest)
    if isinstance(value, list) and "items" in schema:
        for item in value:
            conforms(item, schema["items"])


def test_what_the_surface_says_conforms_to_the_document():
    model = FakeSwitchable("m")
    surface, told = served(model)
    document_ = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
    conforms(document_, SCHEMAS["InferRequest"])
    checked = 0
    for template, verbs in told["paths"].items():
        path = template.format(model_name="m", model_version="3-abc")
        for verb, operation in verbs.items():
            model.ready = True  # unload is among them
            body = orjson.dumps(document_) if path.endswith("/infer") else b""
            exchange = FakeExchange(verb.upper(), path, body)
            surface.resolve(verb.upper(), path)(exchange)
            assert exchange.status == 200
            schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
            conforms(exchange.json(), schema)
            checked += 1
    assert checked >= 18


@pytest.mark.parametrize("path", ["", "/ready", "/config", "/stats"])
def test_what_it_says_of_a_language_model_conforms_too(path):
    surface, told = served(FakeGenerative("m"))
    exchange = FakeExchange("GET", f"/v2/models/m{path}")
    surface.resolve("GET", exchange.path)(exchange)
    operation = told["paths"]["/v2/models/{model_name}" + path]["get"]
    conforms(
        exchange.json(), operation["responses"]["200"]["content"]["application/json"]["schema"]
    )


@pytest.mark.parametrize(
    ("verb", "parameters", "status"),
    [
        ("load", {}, 200),
        ("load", {"config": "{}"}, 400),
        ("load", {"unload_dependents": True}, 400),
        ("unload", {"unload_dependents": True}, 200),
        ("unload", {"config": "{}"}, 400),
    ],
)
def test_the_document_and_the_surface_refuse_the_same_parameters(verb, parameters, status):
    surface, told = served(FakeSwitchable("m"))
    asked = {"parameters": parameters}
    exchange = FakeExchange("POST", f"/v2/repository/models/m/{verb}", orjson.dumps(asked))
    surface.resolve("POST", exchange.path)(exchange)
    assert exchange.status == status
    operation = told["paths"]["/v2/repository/models/{model_name}/" + verb]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    if status == 200:
        conforms(asked, schema)
    else:
        with pytest.raises(AssertionError):
            conforms(asked, schema)
