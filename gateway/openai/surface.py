"""OpenAI's /v1: the model that a request names decides who answers it, native or relayed.

Owns the table of names, made anew for each configuration. A body is scanned for the name once and
passed on as it came. Invariant: a request goes where the table of the moment of its decision says,
and stays there when that changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol
from urllib.parse import unquote

import orjson

from gateway.errors import BadRequest, MethodNotAllowed, ModelNotFound, Unsupported
from gateway.lane import Exchange, Handler
from gateway.relay.intake import Held, ModelIntake
from gateway.relay.reply import refuse
from gateway.relay.scan import form_model

ROOT = "/v1"
MODELS = "/v1/models"


class Named(Protocol):
    """Who answers for a name. `model`: as the configuration names it. `fields`: of a body, that it
    looks at; `replay`: bodies up to this size are gathered before `open`; `listed`: whether clients
    are told of it."""

    @property
    def model(self) -> str: ...
    @property
    def fields(self) -> frozenset[str]: ...
    @property
    def replay(self) -> int: ...
    @property
    def listed(self) -> bool: ...
    def open(
        self,
        exchange: Exchange,
        body: bytes,
        fields: Mapping[str, Any] | None = None,
        *,
        complete: bool,
    ) -> None: ...


class OpenAISurface:
    """`held`: what all intakes of the worker may hold. `set_names` before the first request."""

    def __init__(self, held: Held) -> None:
        self._held = held
        self._since = int(time.time())
        self._names: dict[str, Named] = {}
        self._fields: frozenset[str] = frozenset()
        self._replay = 0
        self._model_handler: Handler = _Streaming(self._to_model)
        self._list_handler: Handler = _Gathered(self._list)

    def set_names(self, names: Mapping[str, Named]) -> None:
        self._names = dict(names)
        served = self._names.values()
        self._fields = frozenset({"model"}.union(*(d.fields for d in served)))
        self._replay = min((d.replay for d in served), default=0)

    def resolve(self, method: str, path: str) -> Handler | None:
        """The lane's question; `path` is raw. None for what is not under /v1, and for all of it
        where no model has a name there."""
        if not self._names or not (path == ROOT or path.startswith(ROOT + "/")):
            return None
        if path == MODELS or path.startswith(MODELS + "/"):
            return self._list_handler
        return self._model_handler

    def _to_model(self, exchange: Exchange) -> None:
        framing = exchange.head.framing
        if framing.encoding is not None or framing.unknown_encoding:
            error = Unsupported("content-encoding: send the body as it is; its model is looked for")
            refuse(exchange, error, openai=True)
        elif not framing.length:
            self._without_body(exchange)
        else:
            choose = self._by_form if _is_form(exchange) else self._by_field
            ModelIntake(exchange, self._held, choose, self._fields, self._replay).listen()

    def _without_body(self, exchange: Exchange) -> None:
        """Such requests name things of one model's server: there must be but one."""
        try:
            destination = self._named(None)
        except BadRequest as error:
            refuse(exchange, error, openai=True)
        else:
            destination.open(exchange, b"", complete=True)

    def _by_field(self, fields: Mapping[str, Any], body: bytes) -> Named:
        return self._named(fields.get("model"))

    def _by_form(self, fields: Mapping[str, Any], body: bytes) -> Named:
        return self._named(form_model(body))

    def _named(self, name: Any) -> Named:
        listed = {n: d for n, d in self._names.items() if d.listed}
        if name is None and len(set(listed.values())) == 1:
            return next(iter(listed.values()))
        known = ", ".join(sorted(listed)) or "none"
        if not isinstance(name, str) or not name:
            raise BadRequest(f"model: expected the name of one of {known}", param="model")
        found = self._names.get(name)
        if found is None:
            shown = name if len(name) <= 100 else f"{name[:97]}..."
            raise ModelNotFound(
                f"there is no model {shown!r}; this gateway serves {known}", param="model"
            )
        return found

    def _list(self, exchange: Exchange) -> None:
        if exchange.method not in ("GET", "HEAD"):
            error = MethodNotAllowed(f"{exchange.path} takes GET", allow="GET")
            refuse(exchange, error, openai=True)
            return
        if exchange.path == MODELS:
            tenant = exchange.tenant
            models = [
                self._model(name)
                for name, found in self._names.items()
                if found.listed and (tenant is None or tenant.may(found.model))
            ]
            exchange.respond(200, orjson.dumps({"object": "list", "data": models}))
            return
        name = unquote(exchange.path.removeprefix(MODELS + "/"))
        try:
            self._named(name)
        except (BadRequest, ModelNotFound) as error:
            refuse(exchange, error, openai=True)
        else:
            exchange.respond(200, orjson.dumps(self._model(name)))

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._since, "owned_by": "penstock"}


def _is_form(exchange: Exchange) -> bool:
    kind = exchange.header(b"content-type") or b""
    return kind[:19].lower() == b"multipart/form-data"


class _Streaming:
    __slots__ = ("_act",)
    streams = True

    def __init__(self, act: Callable[[Exchange], None]) -> None:
        self._act = act

    def __call__(self, exchange: Exchange) -> None:
        self._act(exchange)


class _Gathered(_Streaming):
    __slots__ = ()
    streams = False
