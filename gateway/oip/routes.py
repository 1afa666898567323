"""The one table of the protocol's paths: it routes requests and it makes the OpenAPI document.

Owns verbs and path templates, not what happens there. A route whose operation nobody acts on is a
part of the protocol that is not offered: it is answered 501 and appears in no document.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from urllib.parse import unquote


class Route(NamedTuple):
    """`request` and `response` name schemas of the OpenAPI document; None: no body."""

    method: str
    template: str
    operation: str
    summary: str
    request: str | None = None
    response: str | None = None


class Place(NamedTuple):
    """A path that is in the table: its routes by verb, and what the path says."""

    routes: dict[str, Route]
    model: str
    version: str | None


_MODEL = "/v2/models/{model_name}"
_VERSION = "/v2/models/{model_name}/versions/{model_version}"


def _both(
    method: str,
    verb: str,
    operation: str,
    summary: str,
    request: str | None = None,
    response: str | None = None,
) -> Iterator[Route]:
    """With and without a version; the longer template first, because the first match counts."""
    yield Route(
        method,
        _VERSION + verb,
        f"{operation}_version",
        f"{summary}, of a version",
        request,
        response,
    )
    yield Route(method, _MODEL + verb, operation, summary, request, response)


ROUTES: tuple[Route, ...] = (
    Route("GET", "/v2", "server_metadata", "Name, version and extensions of the server",
          response="ServerMetadata"),
    Route("GET", "/v2/health/live", "server_live", "Whether the server is alive",
          response="ServerLive"),
    Route("GET", "/v2/health/ready", "server_ready", "Whether every model can be asked",
          response="ServerReady"),
    Route("GET", "/v2/openapi.json", "openapi", "This document", response="Document"),
    Route("GET", "/v2/models/stats", "statistics", "Statistics of all models",
          response="Statistics"),
    Route("POST", "/v2/repository/index", "repository_index", "All models and their states",
          "IndexRequest", "RepositoryIndex"),
    Route("POST", "/v2/repository/models/{model_name}/load", "model_load",
          "Reload the model and put it into service", "LoadRequest", "Empty"),
    Route("POST", "/v2/repository/models/{model_name}/unload", "model_unload",
          "Take the model out of service; what runs is answered", "UnloadRequest", "Empty"),
    *_both("POST", "/infer", "model_infer", "Inference", "InferRequest", "InferResponse"),
    *_both("GET", "/ready", "model_ready", "Whether the model can be asked",
           response="ModelReady"),
    *_both("GET", "/config", "model_config", "The model's configuration, in Triton's form",
           response="ModelConfig"),
    *_both("GET", "/stats", "model_statistics", "The model's statistics", response="Statistics"),
    *_both("POST", "/generate", "generate", "Text generation", "GenerateRequest",
           "GenerateResponse"),
    *_both("POST", "/generate_stream", "generate_stream",
           "Text generation, streamed as server-sent events", "GenerateRequest",
           "GenerateEvents"),
    *(
        Route(method, path, f"{operation}_{method.lower()}", summary)
        for path, operation, summary in (
            ("/v2/models/{model_name}/trace/setting", "model_trace", "Trace settings"),
            ("/v2/trace/setting", "trace", "Trace settings"),
            ("/v2/logging", "logging", "Log settings"),
        )
        for method in ("GET", "POST")
    ),
    *(
        Route(method, f"/v2/{kind}sharedmemory{region}/{verb}", f"{kind}_memory_{verb}{all_}",
              "Shared memory")
        for kind in ("system", "cuda")
        for region, all_ in (("/region/{region_name}", ""), ("", "_all"))
        for method, verb in (("GET", "status"), ("POST", "register"), ("POST", "unregister"))
        if region or verb != "register"
    ),
    *_both("GET", "", "model_metadata", "Names, datatypes and shapes of the model's tensors",
           response="ModelMetadata"),
)  # fmt: skip


def _pattern(template: str) -> re.Pattern[str]:
    # Clients leave slashes in a model's name as they are.
    parts = {"{model_name}": "(?P<model>.+?)", "{model_version}": "(?P<version>[^/]+)",
             "{region_name}": "[^/]+"}  # fmt: skip
    pieces = re.split(r"(\{\w+\})", template)
    return re.compile("".join(parts.get(piece) or re.escape(piece) for piece in pieces))


class Router:
    """Finds the place of a path; for requests that no cache knows."""

    def __init__(self, routes: Sequence[Route] = ROUTES) -> None:
        self._places: list[tuple[re.Pattern[str], dict[str, Route]]] = []
        by_template: dict[str, dict[str, Route]] = {}
        for route in routes:
            if route.template not in by_template:
                by_template[route.template] = {}
                self._places.append((_pattern(route.template), by_template[route.template]))
            by_template[route.template][route.method] = route

    def find(self, path: str) -> Place | None:
        """`path` is raw: percent-encoded, without the query."""
        for pattern, routes in self._places:
            match = pattern.fullmatch(path)
            if match is not None:
                said = {name: unquote(text) for name, text in match.groupdict().items()}
                return Place(routes, said.get("model", ""), said.get("version"))
        return None
