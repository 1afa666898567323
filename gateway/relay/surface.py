"""What clients reach through the relay: configured routes, and OpenAI's /v1 by a model's name.

Owns the tables of routes and names, made anew for each configuration. Invariant: a request goes
where the tables of the moment of its decision say, and stays there when they change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

import orjson

from gateway.config import RouteConfig
from gateway.errors import BadRequest, MethodNotAllowed, ModelNotFound, NotFound, Unsupported
from gateway.http_pool import HttpPool
from gateway.lane import Exchange, Handler
from gateway.relay.destination import Destination, Ids
from gateway.relay.intake import Held, ModelIntake, RouteIntake
from gateway.relay.reply import refuse
from gateway.relay.routes import RouteTable
from gateway.relay.scan import form_model

MODELS = "/v1/models"


class RelaySurface:
    """`rebuild` before the first request, and after every change of pools or routes."""

    def __init__(self) -> None:
        self._ids, self._held = Ids(), Held()
        self._since = int(time.time())
        self._table: RouteTable[Destination] = RouteTable()
        self._names: dict[str, Destination] = {}
        self._fields: frozenset[str] = frozenset()
        self._replay = 0
        self._route_handler: Handler = _Streaming(self._to_route)
        self._model_handler: Handler = _Streaming(self._to_model)
        self._list_handler: Handler = _Gathered(self._list)

    def rebuild(self, pools: Sequence[HttpPool], routes: Sequence[RouteConfig]) -> None:
        by_name = {pool.name: pool for pool in pools}
        self._table = RouteTable([(r, self._route(by_name[r.model], r)) for r in routes])
        self._names = {}
        for pool in pools:
            relay = pool.config.relay
            if relay.api == "openai":
                destination = Destination(pool, self._ids, openai=True)
                for name in relay.names or (pool.name,):
                    self._names[name] = destination
        served = self._names.values()
        self._fields = frozenset({"model"}.union(*(d.fields for d in served)))
        self._replay = min((d.replay for d in served), default=0)

    def _route(self, pool: HttpPool, route: RouteConfig) -> Destination:
        openai = pool.config.relay.api == "openai"
        return Destination(
            pool,
            self._ids,
            openai=openai,
            strip=len(route.path) if route.strip_prefix and route.path != "/" else 0,
            sessions=route.sessions,
            timeout_s=None if route.timeout_ms is None else route.timeout_ms / 1e3,
            public=route.public,
        )

    def public(self, path: str, host: bytes | None) -> bool | None:
        """Whether the route there is open to all; None where none leads there."""
        if not self._table.covers(path):
            return None
        destination = self._table.find(path, host)
        return destination is not None and destination.public

    def openai(self, path: str, host: bytes | None) -> bool:
        """Whether clients there read errors in OpenAI's form."""
        if self._table.covers(path):
            destination = self._table.find(path, host)
            return destination is not None and destination.openai
        return path == "/v1" or path.startswith("/v1/")

    def resolve(self, method: str, path: str) -> Handler | None:
        """The lane's question; `path` is raw. None for what is not relayed."""
        if self._table.covers(path):
            return self._route_handler
        if self._names and (path == "/v1" or path.startswith("/v1/")):
            if path == MODELS or path.startswith(MODELS + "/"):
                return self._list_handler
            return self._model_handler
        return None

    # ---------------------------------------------------------------------------------- by route

    def _to_route(self, exchange: Exchange) -> None:
        destination = self._table.find(exchange.path, exchange.header(b"host"))
        if destination is None:
            error = NotFound(f"no route leads from this host to {exchange.path}")
            refuse(exchange, error, openai=False)
            return
        length = exchange.head.framing.length
        if not length or length > destination.replay:
            destination.open(exchange, b"", complete=not length)
        else:
            RouteIntake(exchange, self._held, destination).listen()

    # ---------------------------------------------------------------------------------- by model

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

    def _by_field(self, fields: Mapping[str, Any], body: bytes) -> Destination:
        return self._named(fields.get("model"))

    def _by_form(self, fields: Mapping[str, Any], body: bytes) -> Destination:
        return self._named(form_model(body))

    def _named(self, name: Any) -> Destination:
        if name is None and len(set(self._names.values())) == 1:
            return next(iter(self._names.values()))
        known = ", ".join(sorted(self._names))
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
                for name, destination in self._names.items()
                if tenant is None or tenant.may(destination.pool.name)
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
