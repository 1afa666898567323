"""The OpenAPI 3.1 document of the surface, made from the routes that it offers.

Paths, verbs and which operations there are come from the table alone; here are the schemas that it
names. Invariant: a route that names a schema which is not here fails when the document is made.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from backends.wire import DATATYPES
from gateway.oip.parameters import PRIORITY_LEVELS
from gateway.oip.routes import Route
from gateway.oip.terms import MAX_ID, MAX_PRIORITY

JSON, BINARY = "application/json", "application/octet-stream"
EVENTS = "text/event-stream"

_TEXT: dict[str, Any] = {"type": "string"}
_FLAG: dict[str, Any] = {"type": "boolean"}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
_SHAPE: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": -1}}
_DATATYPE: dict[str, Any] = {"enum": list(DATATYPES)}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _object(
    properties: dict[str, Any], optional: Iterable[str] = (), *, closed: bool = False
) -> dict[str, Any]:
    """`closed`: other fields are refused, as requests with unknown ones are."""
    required = [name for name in properties if name not in set(optional)]
    made: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        made["required"] = required
    if closed:
        made["additionalProperties"] = False
    return made


def _options(properties: dict[str, Any]) -> dict[str, Any]:
    """An object of which every field may be left out, and no other given."""
    return _object(properties, properties, closed=True)


_DATA = {
    "description": "Elements in row-major order, flat or nested as the shape says. NaN and the "
    'infinities are the strings "NaN", "Infinity" and "-Infinity".',
    "type": "array",
}

SCHEMAS: dict[str, dict[str, Any]] = {
    "Error": _object({"error": _TEXT}),
    "Empty": _object({}),
    "Document": {"type": "object"},
    "ServerMetadata": _object({"name": _TEXT, "version": _TEXT, "extensions": _list(_TEXT)}),
    "ServerLive": _object({"live": _FLAG}),
    "ServerReady": _object({"ready": _FLAG}),
    "ModelReady": _object({"name": _TEXT, "ready": _FLAG}),
    "TensorMetadata": _object({"name": _TEXT, "datatype": _DATATYPE, "shape": _SHAPE}),
    "ModelMetadata": _object(
        {
            "name": _TEXT,
            "versions": _list(_TEXT),
            "platform": _TEXT,
            "inputs": _list(_ref("TensorMetadata")),
            "outputs": _list(_ref("TensorMetadata")),
        }
    ),
    "TensorConfig": _object({"name": _TEXT, "data_type": _TEXT, "dims": _SHAPE}),
    "ModelConfig": _object(
        {
            "name": _TEXT,
            "platform": _TEXT,
            "backend": _TEXT,
            "version_policy": {"type": "object"},
            "max_batch_size": _COUNT,
            "input": _list(_ref("TensorConfig")),
            "output": _list(_ref("TensorConfig")),
            "dynamic_batching": {"type": "object"},
            "model_transaction_policy": _object({"decoupled": _FLAG}),
        },
        ["dynamic_batching"],  # models that take calls batch by themselves
    ),
    "Duration": _object({"count": _COUNT, "ns": _COUNT}),
    "Statistics": _object({"model_stats": _list(_ref("ModelStatistics"))}),
    "ModelStatistics": _object(
        {
            "name": _TEXT,
            "version": _TEXT,
            "last_inference": _COUNT,
            "inference_count": _COUNT,
            "execution_count": _COUNT,
            "inference_stats": {"type": "object", "additionalProperties": _ref("Duration")},
            "batch_stats": _list(
                _object(
                    {
                        "batch_size": _COUNT,
                        "compute_input": _ref("Duration"),
                        "compute_infer": _ref("Duration"),
                        "compute_output": _ref("Duration"),
                    }
                )
            ),
        }
    ),
    "IndexRequest": _options({"ready": _FLAG}),
    "LoadRequest": _options({"parameters": _options({})}),
    "UnloadRequest": _options({"parameters": _options({"unload_dependents": _FLAG})}),
    "RepositoryIndex": _list(
        _object({"name": _TEXT, "version": _TEXT, "state": _TEXT, "reason": _TEXT})
    ),
    "InferRequest": _object(
        {
            "id": _TEXT,
            "model_name": _TEXT,
            "model_version": _TEXT,
            "parameters": _options(
                {
                    "binary_data_output": _FLAG,
                    "priority": {"type": "integer", "minimum": 0, "maximum": PRIORITY_LEVELS},
                    "timeout": {**_COUNT, "description": "Microseconds."},
                    # Clients that have no sequence may say so.
                    "sequence_id": {"enum": [0, ""]},
                    "sequence_start": {"const": False},
                    "sequence_end": {"const": False},
                }
            ),
            "inputs": _list(_ref("InferInput")),
            "outputs": _list(_ref("RequestedOutput")),
        },
        ["id", "model_name", "model_version", "parameters", "outputs"],
        closed=True,
    ),
    "GenerateRequest": _object(
        {
            "text_input": _TEXT,
            "parameters": {
                "description": "max_tokens, temperature, stop and the like; what the model does "
                "not know is refused",
                "type": "object",
            },
        },
        ["parameters"],
    ),
    "GenerateResponse": _object(
        {"model_name": _TEXT, "model_version": _TEXT, "text_output": _TEXT}
    ),
    "GenerateEvents": {
        "description": "Each event's data is an object as of generate, with the next piece of the "
        "text; one with the field error ends a stream that could not go on.",
        "type": "string",
    },
    "InferInput": _object(
        {
            "name": _TEXT,
            "datatype": _DATATYPE,
            "shape": _SHAPE,
            "parameters": _options({"binary_data_size": _COUNT}),
            "data": _DATA,
        },
        ["parameters", "data"],
        closed=True,
    ),
    "RequestedOutput": _object(
        {
            "name": _TEXT,
            "parameters": _options({"binary_data": _FLAG, "classification": _COUNT}),
        },
        ["parameters"],
        closed=True,
    ),
    "InferResponse": _object(
        {
            "model_name": _TEXT,
            "model_version": _TEXT,
            "id": _TEXT,
            "outputs": _list(
                _object(
                    {
                        "name": _TEXT,
                        "datatype": _DATATYPE,
                        "shape": _SHAPE,
                        "parameters": _object({"binary_data_size": _COUNT}),
                        "data": _DATA,
                    },
                    ["parameters", "data"],
                )
            ),
        },
        ["id"],
    ),
}

_INFER_HEADERS = {
    "Inference-Header-Content-Length": "Bytes of JSON at the head of the body, before compression; "
    "0: the body is the data of the only input, for one row",
    "X-Request-Id": "Echoed; made where it is missing",
    "X-Session-Id": "Requests with equal ones should reach the same replica",
    "X-Model-Version": "Pins a version, as /versions/{v} does",
    "X-Deadline-Ms": "Answer within so many milliseconds of the arrival, or not at all",
    "X-Priority": "Higher is sooner; 0 is ordinary",
    "X-Timing": "1: the answer has a Server-Timing header",
    "Accept-Encoding": "gzip or deflate, alone: the answer comes compressed",
}
# What their values may be; text where nothing is said.
_HEADER_SCHEMAS: dict[str, dict[str, Any]] = {
    "Inference-Header-Content-Length": _COUNT,
    "X-Request-Id": {"type": "string", "maxLength": MAX_ID},
    "X-Session-Id": {"type": "string", "maxLength": MAX_ID},
    "X-Model-Version": {"type": "string", "maxLength": MAX_ID},
    "X-Deadline-Ms": {"type": "number", "exclusiveMinimum": 0},
    "X-Priority": {"type": "integer", "minimum": -MAX_PRIORITY, "maximum": MAX_PRIORITY},
    "X-Timing": {"enum": [0, 1]},
}
_GENERATE_HEADERS = (
    "X-Request-Id", "X-Session-Id", "X-Model-Version", "X-Deadline-Ms", "X-Priority"
)  # fmt: skip


def document(
    routes: Iterable[Route],
    version: str,
    paths: Mapping[str, Any] | None = None,
    schemas: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """`routes`: those that are offered; `paths` and `schemas`: of other surfaces."""
    told: dict[str, Any] = {}
    for route in routes:
        told.setdefault(route.template, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Penstock", "version": version},
        "paths": {**told, **(paths or {})},
        "components": {"schemas": {**SCHEMAS, **(schemas or {})}},
    }


def _operation(route: Route) -> dict[str, Any]:
    infer = route.response == "InferResponse"
    generate = route.request == "GenerateRequest"
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": _TEXT}
        for name in re.findall(r"\{(\w+)\}", route.template)
    ]
    headers = tuple(_INFER_HEADERS) if infer else _GENERATE_HEADERS if generate else ()
    parameters += [
        {
            "name": name,
            "in": "header",
            "description": _INFER_HEADERS[name],
            "schema": _HEADER_SCHEMAS.get(name, _TEXT),
        }
        for name in headers
    ]
    made: dict[str, Any] = {
        "operationId": route.operation,
        "summary": route.summary,
        "parameters": parameters,
        "responses": {
            "200": {"description": "Done", "content": _content(route.response, infer)},
            "default": {"description": "Why not", "content": _content("Error", False)},
        },
    }
    if route.request is not None:
        needed = infer or generate
        made["requestBody"] = {"required": needed, "content": _content(route.request, infer)}
    return made


def _content(schema: str | None, binary: bool) -> dict[str, Any]:
    if schema is None:
        return {}
    assert schema in SCHEMAS, f"the route table names a schema {schema} that is not there"
    if schema == "GenerateEvents":
        return {EVENTS: {"schema": _ref(schema)}}
    made: dict[str, Any] = {JSON: {"schema": _ref(schema)}}
    if binary:
        made[BINARY] = {"schema": {"description": f"{schema} as JSON, then the tensors' bytes"}}
    return made
