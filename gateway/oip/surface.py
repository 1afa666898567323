"""The Open Inference Protocol v2 as handlers of the lane.

Owns what each operation of the table does; `resolve` knows everything under /v2, so nothing there
reaches another surface. Invariant: what cannot be done is neither advertised nor silently ignored.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import orjson

from gateway.errors import BadRequest, GatewayError, MethodNotAllowed, NotFound, Unsupported
from gateway.lane import Exchange, Handler
from gateway.oip import documents
from gateway.oip.directory import (
    Directory,
    Gather,
    Generative,
    ModelView,
    Switchable,
    generates,
)
from gateway.oip.infer import InferDesk, InferHandler, pin, signature_of
from gateway.oip.openapi import document
from gateway.oip.reply import answer, refuse
from gateway.oip.routes import ROUTES, Router
from gateway.oip.statistics import ModelStats
from gateway.oip.versions import find

log = logging.getLogger(__name__)

# What an operation does with an exchange, the model and the version that the path names.
Act = Callable[[Exchange, str, str | None], None]

SERVER = "penstock"
GENERATIVE = frozenset(
    {"generate", "generate_version", "generate_stream", "generate_stream_version"}
)
# Paths of infer calls; old versions' paths go when it is full.
MAX_PATHS = 4096


class OipSurface:
    """`gather`: statistics over all workers, where there are several. `generative`: acts for
    generate and generate_stream, where models can do that. `beyond`: paths and schemas that the
    document has from other surfaces."""

    def __init__(
        self,
        directory: Directory,
        *,
        gather: Gather | None = None,
        generative: Mapping[str, Act] | None = None,
        beyond: Callable[[], tuple[Mapping[str, Any], Mapping[str, Any]]] = lambda: ({}, {}),
    ) -> None:
        self._beyond = beyond
        self._directory, self._gather = directory, gather
        self._desk = InferDesk(directory)
        self._router = Router()
        self._infer_paths: dict[str, Handler] = {}
        acts: dict[str, Act] = {
            "server_metadata": self._server,
            "server_live": lambda exchange, model, version: answer(exchange, {"live": True}),
            "server_ready": self._ready,
            "openapi": self._openapi,
            "statistics": self._statistics,
            "repository_index": self._index,
            "model_load": self._load,
            "model_unload": self._unload,
        }
        for name, act in {
            "model_infer": self._desk.infer,
            "model_ready": self._model_ready,
            "model_config": self._config,
            "model_statistics": self._statistics,
            "model_metadata": self._metadata,
        }.items():
            acts[name] = acts[f"{name}_version"] = act
        for name, generate in (generative or {}).items():
            acts[name] = acts[f"{name}_version"] = generate
        self._acts = acts

    def resolve(self, method: str, path: str) -> Handler | None:
        """The lane's question; `path` is raw. None for what is not under /v2."""
        if method == "POST":
            known = self._infer_paths.get(path)
            if known is not None:
                return known
        if path != "/v2" and not path.startswith("/v2/"):
            return None
        return self._find(method, path)

    def _find(self, method: str, path: str) -> Handler:
        place = self._router.find(path.rstrip("/"))
        if place is None:
            return _Refusal(NotFound(f"there is nothing at {path}"))
        route = place.routes.get("GET" if method == "HEAD" else method)
        try:
            view = self._directory.model(place.model) if place.model else None
        except GatewayError as error:
            return _Refusal(error.detached())
        if route is None:
            allow = ", ".join(sorted(place.routes))
            return _Refusal(MethodNotAllowed(f"{path} takes {allow}, not {method}", allow=allow))
        act = self._acts.get(route.operation)
        if act is None:
            return _Refusal(Unsupported(f"{route.summary} ({path}) is not offered by this server"))
        if act == self._desk.infer and view is not None:
            handler = InferHandler(self._desk, place.model, place.version)
            if len(self._infer_paths) >= MAX_PATHS:
                self._infer_paths.clear()
            if place.version is None or find(place.version, view.versions):
                self._infer_paths[path] = handler
            return handler
        return _Bound(act, place.model, place.version)

    # ------------------------------------------------------------------------------- the server

    def _server(self, exchange: Exchange, model: str, version: str | None) -> None:
        extensions = documents.extensions(self._directory.models(), self._operations())
        answer(exchange, {"name": SERVER, "version": server_version(), "extensions": extensions})

    def _ready(self, exchange: Exchange, model: str, version: str | None) -> None:
        waiting = [view.reason() for view in self._directory.models() if not _fit(view)]
        if waiting:
            answer(exchange, {"ready": False, "error": "; ".join(waiting)}, 503)
        else:
            answer(exchange, {"ready": True})

    def _openapi(self, exchange: Exchange, model: str, version: str | None) -> None:
        operations = self._operations()
        offered = [route for route in ROUTES if route.operation in operations]
        paths, schemas = self._beyond()
        answer(exchange, document(offered, server_version(), paths, schemas))

    def _operations(self) -> frozenset[str]:
        """Those that any model can be asked for now."""
        operations, views = frozenset(self._acts), self._directory.models()
        if not any(isinstance(view, Switchable) for view in views):
            operations -= {"model_load", "model_unload"}
        if not any(map(generates, views)):
            operations -= GENERATIVE
        return operations

    # -------------------------------------------------------------------------------- one model

    def _model_ready(self, exchange: Exchange, model: str, version: str | None) -> None:
        view = self._view(model, version)
        if view.ready:
            answer(exchange, {"name": model, "ready": True})
        else:
            answer(exchange, {"name": model, "ready": False, "error": view.reason()}, 503)

    def _metadata(self, exchange: Exchange, model: str, version: str | None) -> None:
        view = self._view(model, version)
        if surfaces := calls_only(view):
            answer(exchange, documents.call_metadata(model, view.versions, surfaces))
        else:
            answer(exchange, documents.metadata(model, view.versions, signature_of(view)))

    def _config(self, exchange: Exchange, model: str, version: str | None) -> None:
        view = self._view(model, version)
        if surfaces := calls_only(view):
            answer(exchange, documents.call_configuration(model, surfaces))
            return
        signature = signature_of(view)
        limit = view.max_batch_size or signature.max_batch_size
        answer(exchange, documents.configuration(model, signature, limit))

    def _view(self, model: str, version: str | None) -> ModelView:
        view = self._directory.model(model)
        if version is not None:
            pin(view, version)
        return view

    def _visible(self, exchange: Exchange) -> Sequence[ModelView]:
        """What whoever asks may use."""
        views, tenant = self._directory.models(), exchange.tenant
        return views if tenant is None else [view for view in views if tenant.may(view.name)]

    # ------------------------------------------------------------------------------- statistics

    def _statistics(self, exchange: Exchange, model: str, version: str | None) -> None:
        """Of all models where the path names none."""
        views = [self._directory.model(model)] if model else self._visible(exchange)
        if self._gather is None:
            own = {view.name: view.stats for view in views}
            self._tell_statistics(exchange, views, version, own)
            return

        def gathered(all_: Mapping[str, ModelStats] | GatewayError) -> None:
            if isinstance(all_, GatewayError):
                refuse(exchange, all_)
            else:
                _guarded(exchange, self._tell_statistics, views, version, all_)

        self._gather(gathered)

    def _tell_statistics(
        self,
        exchange: Exchange,
        views: Sequence[ModelView],
        version: str | None,
        stats: Mapping[str, ModelStats],
    ) -> None:
        lines: list[dict[str, Any]] = []
        for view in views:
            own = stats.get(view.name) or ModelStats()
            known = list(dict.fromkeys([*view.versions, *own.versions]))
            if version is not None:
                found = find(version, known)
                if found is None:
                    raise NotFound(f"model {view.name!r} has served no version {version!r}")
                known = [found]
            lines += documents.statistics(view.name, own, known)
        answer(exchange, {"model_stats": lines})

    # ------------------------------------------------------------------------------- repository

    def _index(self, exchange: Exchange, model: str, version: str | None) -> None:
        asked = _body(exchange, {"ready"})
        only_ready = asked.get("ready", False)
        if type(only_ready) is not bool:
            raise BadRequest("ready must be true or false", param="ready")
        answer(exchange, documents.index(self._visible(exchange), only_ready=only_ready))

    def _load(self, exchange: Exchange, model: str, version: str | None) -> None:
        view = self._switchable(exchange, model)
        for name in _parameters(exchange):
            raise BadRequest(
                f"parameters.{name}: a model is loaded as the gateway's configuration and its "
                "channel say; nothing can be overridden here",
                param=f"parameters.{name}",
            )
        view.load(lambda error: _ended(exchange, error))

    def _unload(self, exchange: Exchange, model: str, version: str | None) -> None:
        view = self._switchable(exchange, model)
        for name, value in _parameters(exchange).items():
            # No model depends on another here: either value asks for the same.
            if name != "unload_dependents" or type(value) is not bool:
                raise BadRequest(
                    f"parameters.{name}: the only parameter is unload_dependents, true or false",
                    param=f"parameters.{name}",
                )
        view.unload(lambda error: _ended(exchange, error))

    def _switchable(self, exchange: Exchange, model: str) -> Switchable:
        if exchange.tenant is not None:
            exchange.tenant.manage()
        view = self._directory.model(model)
        if not isinstance(view, Switchable):
            raise Unsupported(f"model {model!r} cannot be loaded or unloaded through this server")
        return view


def server_version() -> str:
    try:
        return version("penstock")
    except PackageNotFoundError:
        return "unknown"  # run from a source tree that is not installed


def calls_only(view: ModelView) -> frozenset[str]:
    """The forms of its calls, of a model that takes no tensors; empty for others."""
    takes = view.surfaces if isinstance(view, Generative) else frozenset[str]()
    return takes if view.signature is None else frozenset()


def _fit(view: ModelView) -> bool:
    """Ready, or out of service because somebody wanted it so."""
    return view.ready or (isinstance(view, Switchable) and view.unloaded)


def _body(exchange: Exchange, fields: set[str]) -> dict[str, Any]:
    """The JSON object of a repository request; the body may be empty."""
    if not len(exchange.body):
        return {}
    try:
        asked = orjson.loads(exchange.body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is no valid JSON: {error}") from error
    if type(asked) is not dict:
        raise BadRequest("the body must be a JSON object")
    for name in asked.keys() - fields:
        raise BadRequest(f"field {name!r} is not known; expected {', '.join(fields)}", param=name)
    return asked


def _parameters(exchange: Exchange) -> dict[str, Any]:
    parameters = _body(exchange, {"parameters"}).get("parameters", {})
    if type(parameters) is not dict:
        raise BadRequest("parameters must be an object", param="parameters")
    return parameters


def _ended(exchange: Exchange, error: GatewayError | None) -> None:
    """A load or unload."""
    if error is None:
        answer(exchange, {})
    else:
        refuse(exchange, error)


def _guarded(exchange: Exchange, act: Callable[..., None], *arguments: Any) -> None:
    """Act; what it raises becomes the answer."""
    try:
        act(exchange, *arguments)
    except GatewayError as error:
        refuse(exchange, error)
    except Exception:
        log.exception("%s %s failed inside the gateway", exchange.method, exchange.path)
        refuse(exchange, GatewayError("the gateway failed on this request"))


class _Bound:
    """An operation on what one path names."""

    __slots__ = ("_act", "_model", "_version")
    streams = False

    def __init__(self, act: Act, model: str, version: str | None) -> None:
        self._act, self._model, self._version = act, model, version

    def __call__(self, exchange: Exchange) -> None:
        _guarded(exchange, self._allowed, self._model, self._version)

    def _allowed(self, exchange: Exchange, model: str, version: str | None) -> None:
        tenant = exchange.tenant
        if tenant is not None and model:
            tenant.allow(model)
        self._act(exchange, model, version)


class _Refusal:
    """Called when the body is there, so that the client has been read to its end."""

    __slots__ = ("_error",)
    streams = False

    def __init__(self, error: GatewayError) -> None:
        self._error = error

    def __call__(self, exchange: Exchange) -> None:
        refuse(exchange, self._error)
