"""What clients reach through the relay: configured routes, and what of OpenAI's /v1 leads here.

Owns the table of routes, made anew for each configuration. Invariant: a request goes where the
table of the moment of its decision says, and stays there when it changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from gateway.config import RouteConfig
from gateway.errors import NotFound
from gateway.http_pool import HttpPool
from gateway.lane import Exchange, Handler
from gateway.openai.surface import Named, OpenAISurface
from gateway.relay.destination import Destination, Ids
from gateway.relay.intake import Held, RouteIntake
from gateway.relay.reply import refuse
from gateway.relay.routes import RouteTable


class RelaySurface:
    """`rebuild` before the first request, and after every change of pools or routes. `v1`: models
    by their names, of http replicas and, by `add`, of native ones."""

    def __init__(self) -> None:
        self._ids, self.held = Ids(), Held()
        self.v1 = OpenAISurface(self.held)
        self._table: RouteTable[Destination] = RouteTable()
        self._relayed: dict[str, Named] = {}
        self._native: Mapping[str, Named] = {}
        self._route_handler: Handler = _Streaming(self._to_route)

    def rebuild(self, pools: Sequence[HttpPool], routes: Sequence[RouteConfig]) -> None:
        by_name = {pool.name: pool for pool in pools}
        self._table = RouteTable([(r, self._route(by_name[r.model], r)) for r in routes])
        self._relayed = {}
        for pool in pools:
            relay = pool.config.relay
            if relay.api == "openai":
                destination = Destination(pool, self._ids, openai=True)
                for name in relay.names or (pool.name,):
                    self._relayed[name] = destination
        self.v1.set_names({**self._native, **self._relayed})

    def add(self, native: Mapping[str, Named]) -> None:
        """Models of native replicas, by their names."""
        self._native = native
        self.v1.set_names({**self._native, **self._relayed})

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
        return self.v1.resolve(method, path)

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
            RouteIntake(exchange, self.held, destination).listen()


class _Streaming:
    __slots__ = ("_act",)
    streams = True

    def __init__(self, act: Callable[[Exchange], None]) -> None:
        self._act = act

    def __call__(self, exchange: Exchange) -> None:
        self._act(exchange)
