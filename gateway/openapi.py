"""What the OpenAPI document says beyond OIP: OpenAI's /v1, the WebSocket's handshake, operations.

Pure. Bodies of /v1 are OpenAI's, which its own documents describe: here are the fields that every
model takes, and what comes back. A path is there only where some model answers it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

JSON, EVENTS, PLAIN = "application/json", "text/event-stream", "text/plain"

_TEXT: dict[str, Any] = {"type": "string"}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
_FLAG: dict[str, Any] = {"type": "boolean"}


class Part(NamedTuple):
    """Of a document: `paths` and `schemas` by their names."""

    paths: dict[str, Any]
    schemas: dict[str, Any]


def _open(required: Collection[str], **properties: Any) -> dict[str, Any]:
    """An object that may have more fields than are named."""
    return {"type": "object", "required": list(required), "properties": properties}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


_STREAM = {**_FLAG, "description": "Server-sent events, and data: [DONE] at the end"}
_PROMPT = {"description": "Text, tokens, or lists of either"}
SCHEMAS: dict[str, dict[str, Any]] = {
    "OpenAIError": _open(
        ["error"],
        error=_open(
            ["message", "type"],
            message=_TEXT,
            type=_TEXT,
            param={"type": ["string", "null"]},
            code={"type": ["string", "null"]},
        ),
    ),
    "ChatRequest": _open(
        ["model", "messages"],
        model=_TEXT,
        messages={"type": "array", "items": _open(["role"], role=_TEXT, content={})},
        stream=_STREAM,
        max_completion_tokens=_COUNT,
    ),
    "CompletionRequest": _open(
        ["model", "prompt"], model=_TEXT, prompt=_PROMPT, stream=_STREAM, max_tokens=_COUNT
    ),
    "ResponsesRequest": _open(
        ["model", "input"], model=_TEXT, input={}, stream=_STREAM, max_output_tokens=_COUNT
    ),
    "EmbeddingsRequest": _open(["model", "input"], model=_TEXT, input=_PROMPT),
    "Answer": _open(["object"], object=_TEXT, model=_TEXT, usage={"type": "object"}),
    "Models": _open(["data"], object=_TEXT, data={"type": "array", "items": _ref("Model")}),
    "Model": _open(["id"], id=_TEXT, object=_TEXT, created=_COUNT, owned_by=_TEXT),
}


class _Call(NamedTuple):
    path: str
    summary: str
    request: str
    streams: bool = True


# By surface.
_CALLS = {
    "chat": _Call("/v1/chat/completions", "A conversation's next message", "ChatRequest"),
    "completions": _Call("/v1/completions", "A text's continuation", "CompletionRequest"),
    "responses": _Call("/v1/responses", "A response to an input", "ResponsesRequest"),
    "embeddings": _Call("/v1/embeddings", "Vectors of texts", "EmbeddingsRequest", streams=False),
}
_HEADERS = {
    "X-Request-Id": "Echoed; made where it is missing",
    "X-Session-Id": "Requests with equal ones should reach the same replica",
    "X-Model-Version": "Pins a version",
    "X-Deadline-Ms": "Answer within so many milliseconds of the arrival, or not at all",
    "X-Priority": "Higher is sooner; 0 is ordinary",
}


def beyond(surfaces: Collection[str]) -> Part:
    """`surfaces`: of /v1, that some model answers."""
    offered = [call for name, call in _CALLS.items() if name in surfaces]
    paths = {call.path: {"post": _operation(call)} for call in offered}
    if offered:
        paths["/v1/models"] = {"get": _get("models", "All models by their names", "Models")}
        paths["/v1/models/{model}"] = {"get": _get("model", "One of them", "Model", ["model"])}
    paths |= _SOCKET | _OPERATIONS
    used = {"OpenAIError", "Answer", "Models", "Model", *(call.request for call in offered)}
    return Part(paths, {name: SCHEMAS[name] for name in SCHEMAS if offered and name in used})


def _operation(call: _Call) -> dict[str, Any]:
    content: dict[str, Any] = {JSON: {"schema": _ref("Answer")}}
    if call.streams:
        content[EVENTS] = {"schema": _TEXT}
    return {
        "operationId": call.request.removesuffix("Request").lower(),
        "summary": call.summary,
        "parameters": [
            {"name": name, "in": "header", "description": text, "schema": _TEXT}
            for name, text in _HEADERS.items()
        ],
        "requestBody": {"required": True, "content": {JSON: {"schema": _ref(call.request)}}},
        "responses": {"200": {"description": "Done", "content": content}, **_FAILED},
    }


def _get(operation: str, summary: str, schema: str, names: Collection[str] = ()) -> dict[str, Any]:
    return {
        "operationId": operation,
        "summary": summary,
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": _TEXT} for name in names
        ],
        "responses": {
            "200": {"description": "Done", "content": {JSON: {"schema": _ref(schema)}}},
            **_FAILED,
        },
    }


_FAILED = {
    "default": {
        "description": "Why not",
        "content": {JSON: {"schema": _ref("OpenAIError")}},
    }
}


def _plain(operation: str, summary: str, kind: str, **more: str) -> dict[str, Any]:
    """`more`: other statuses and what they say, as s503="…"."""
    done = {"description": "Done", "content": {kind: {"schema": {}}}}
    others = {name.removeprefix("s"): {"description": text} for name, text in more.items()}
    return {
        "get": {
            "operationId": operation,
            "summary": summary,
            "parameters": [],
            "responses": {"200": done, **others},
        }
    }


_SOCKET = {
    "/ws": {
        "get": {
            "operationId": "websocket",
            "summary": "Many requests on one WebSocket, with token streams: docs/websocket.md. "
            "These headers hold for all of its requests",
            "parameters": [
                {"name": name, "in": "header", "description": text, "schema": _TEXT}
                for name, text in {
                    **{name: text for name, text in _HEADERS.items() if name != "X-Request-Id"},
                    "X-Timing": "1: results say how long they took",
                    "Sec-WebSocket-Protocol": "penstock.v1, or none",
                }.items()
            ],
            "responses": {
                "101": {"description": "The connection is a WebSocket"},
                "403": {"description": "Pages from there may not open one"},
                "426": {"description": "No handshake of WebSocket version 13"},
                "503": {"description": "No more of them now"},
            },
        }
    }
}
_OPERATIONS = {
    "/healthz": _plain("health", "Whether the worker is alive", JSON),
    "/readyz": _plain(
        "ready", "Whether every model can be asked", JSON, s503="Which cannot, and why"
    ),
    "/metrics": _plain("metrics", "Counters and times of all workers, for Prometheus", PLAIN),
    "/status.json": _plain("status", "Workers, models, replicas and events", JSON),
}
