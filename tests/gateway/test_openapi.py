"""The OpenAPI document beyond OIP: only what is offered, and nothing that leads nowhere."""

from __future__ import annotations

import re
from typing import Any

import orjson
import pytest

from backends.wire import SURFACES
from gateway.openapi import beyond
from tests.gateway.fake_llm import FakeLLM
from tests.gateway.generation.fakes import serving


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"].rpartition("/")[2]} if "$ref" in node else set()
        return own.union(*map(references, node.values()))
    return set().union(*map(references, node)) if isinstance(node, list) else set()


@pytest.mark.parametrize("surfaces", [(), ("embeddings",), SURFACES])
def test_paths_are_those_that_are_answered_and_references_lead_somewhere(surfaces):
    paths, schemas = beyond(surfaces)
    assert references([paths, schemas]) == schemas.keys()
    assert ("/v1/embeddings" in paths) == ("embeddings" in surfaces)
    assert ("/v1/chat/completions" in paths) == ("chat" in surfaces)
    assert ("/v1/models" in paths) == bool(surfaces)
    assert {"/ws", "/healthz", "/readyz", "/metrics", "/status.json"} <= paths.keys()
    for path, verbs in paths.items():
        for operation in verbs.values():
            named = [p["name"] for p in operation["parameters"] if p["in"] == "path"]
            assert named == re.findall(r"\{(\w+)\}", path)


async def test_the_document_of_a_gateway_with_a_language_model(tmp_path):
    async with serving(tmp_path, FakeLLM(tmp_path / "a")) as gateway:
        told = orjson.loads((await gateway.post(b"", "/v2/openapi.json", method="GET")).body)
        assert {
            "/v1/chat/completions", "/v1/models", "/v2/models/{model_name}/generate", "/ws",
        } <= told["paths"].keys()  # fmt: skip
        assert "/v1/embeddings" not in told["paths"]
        assert references(told) <= told["components"]["schemas"].keys()
        ids = [op["operationId"] for verbs in told["paths"].values() for op in verbs.values()]
        assert len(set(ids)) == len(ids)
