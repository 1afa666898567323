"""All models with http replicas of a worker: their pools, their replicas, and what leads to them.

Owns the tasks that look at replicas and at names. The counterpart of `fleet` for native ones.
Invariant: a replica has one task, which ends when it has left and nothing is in flight on it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gateway.config import GatewayConfig, ModelConfig, ReplicaConfig
from gateway.dns import Place, follow, of_host, of_service
from gateway.dns_client import DnsClient, parse_server, system_servers
from gateway.errors import NoReplica, NotFound
from gateway.http_address import address_of
from gateway.http_pool import HttpPool
from gateway.http_replica import HttpReplica
from gateway.relay.endpoint import Endpoint
from gateway.relay.surface import RelaySurface
from gateway.tls import stamp

# What stands between a configured name and an address that was found for it.
FOUND_AT = "@"


class HttpFleet:
    """`surface` is what the lane asks; it follows every `apply`."""

    def __init__(
        self,
        runtime: Path,
        *,
        loop: asyncio.AbstractEventLoop,
        rng: random.Random,
        weight: Callable[[str], float] = lambda tenant: 1.0,
    ) -> None:
        self._weight = weight
        self._runtime, self._loop, self._rng = runtime, loop, rng
        self.surface = RelaySurface()
        self._pools: dict[str, HttpPool] = {}
        self._recipes: dict[str, object] = {}  # of replicas, by name
        self._tasks: dict[str, asyncio.Task[None]] = {}  # of replicas, by name
        self._lookups: dict[str, tuple[object, asyncio.Task[None]]] = {}  # by configured name
        self._leaving: set[asyncio.Task[None]] = set()
        # What operators said of configured names, for addresses that are found later.
        self._drained: set[str] = set()
        self._weights: dict[str, float] = {}
        self._shares: dict[str, float] = {}  # what DNS says of weights, by replica
        self._ranks: dict[str, int] = {}  # and of priorities

    def pools(self) -> Sequence[HttpPool]:
        return list(self._pools.values())

    # ------------------------------------------------------------------------------------- changes

    def apply(self, config: GatewayConfig) -> None:
        """Make the fleet what `config` says, keeping what is the same."""
        wanted = {model.name: model for model in config.models if model.http}
        listed = {replica.name for model in wanted.values() for replica in model.replicas}
        self._weights.clear()
        self._drained &= listed
        for name in [name for name in self._lookups if name not in listed]:
            self._lookups.pop(name)[1].cancel()
        for name in [name for name in self._pools if name not in wanted]:
            pool = self._pools.pop(name)
            pool.close(NotFound(f"model {name!r} is no longer served"))
            for replica in list(pool.replicas):
                self._leave(pool, replica)
        for name, model in wanted.items():
            if name in self._pools:
                self._pools[name].reconfigure(model)
            else:
                self._pools[name] = HttpPool(
                    model, loop=self._loop, rng=self._rng, weight=self._weight
                )
            self._match(self._pools[name], model)
        self.surface.rebuild(self.pools(), config.routes)

    def _match(self, pool: HttpPool, model: ModelConfig) -> None:
        wanted = {spec.name: spec for spec in model.replicas}
        for replica in list(pool.replicas):
            spec = wanted.get(configured(replica.name))
            if spec is None or self._recipes[replica.name] != _recipe(model, spec):
                self._leave(pool, replica)
            else:
                self._weigh(pool, spec)
        for spec in model.replicas:
            if spec.discover is not None:
                self._look_up(pool, model, spec)
            elif spec.name not in [replica.name for replica in pool.replicas]:
                self._join(pool, model, spec, spec.name, self._locator(model, spec))
        pool.changed()

    def _locator(self, model: ModelConfig, spec: ReplicaConfig) -> Callable[[], Endpoint | None]:
        known: dict[str, Endpoint] = {}  # the newest: parsing makes contexts for TLS

        def locate() -> Endpoint | None:
            address = address_of(spec, self._runtime)
            if address is not None and address not in known:
                known.clear()
                known[address] = Endpoint.parse(address, model.relay.tls)
            return None if address is None else known[address]

        return locate

    def _look_up(self, pool: HttpPool, model: ModelConfig, spec: ReplicaConfig) -> None:
        """Every address of the host is a replica, named by it."""
        recipe = _recipe(model, spec)
        before = self._lookups.get(spec.name)
        if before is not None:
            if before[0] == recipe:
                return
            before[1].cancel()
        assert spec.address is not None
        service = spec.service
        if service is None:
            endpoint = Endpoint.parse(spec.address, model.relay.tls)
            find = of_host(endpoint.host, endpoint.port)
        else:
            scheme = "https" if service.startswith("_https.") else "http"
            address = spec.address.replace("srv", scheme, 1)
            endpoint = Endpoint.parse(address, model.relay.tls)
            find = of_service(service, _dns_client(spec.resolver))

        def found(places: Sequence[Place]) -> None:
            names: dict[str, Endpoint] = {}
            for place in places:
                at = place.host
                if service is None:
                    names[f"{spec.name}{FOUND_AT}{at}"] = endpoint.at(at)
                    continue
                name = f"{spec.name}{FOUND_AT}{at}:{place.port}"
                names[name] = endpoint.serving(at, place.port, place.name)
                self._shares[name], self._ranks[name] = place.weight, place.rank
            present = [r for r in pool.replicas if configured(r.name) == spec.name]
            for replica in present:
                if replica.name not in names:
                    self._leave(pool, replica)
            for name, where in names.items():
                if name not in [replica.name for replica in present]:
                    self._join(pool, model, spec, name, lambda where=where: where)  # type: ignore[misc]
            for replica in pool.replicas:
                replica.rank = self._ranks.get(replica.name, 0)
            if spec.name not in self._weights:  # an operator's word counts more
                self._weigh(pool, spec)
            pool.changed()

        work = follow(endpoint.host, find, spec.discover_s, found, self._rng)
        task = self._loop.create_task(work, name=f"look up {endpoint.host}")
        self._lookups[spec.name] = recipe, task

    def _weigh(self, pool: HttpPool, spec: ReplicaConfig) -> None:
        """Of what one table stands for, each gets its part."""
        now = self._loop.time()
        for replica in pool.replicas:
            if configured(replica.name) == spec.name:
                share = self._shares.get(replica.name, 1.0)
                replica.load.set_weight(spec.weight * share, now)

    def _join(
        self,
        pool: HttpPool,
        model: ModelConfig,
        spec: ReplicaConfig,
        name: str,
        locate: Callable[[], Endpoint | None],
    ) -> None:
        replica = HttpReplica(
            name,
            spec,
            model.relay,
            locate,
            on_change=pool.changed,
            on_return=pool.came_back,
            on_look=pool.looked,
            breaker=pool.ejection.add(name, rng=self._rng),
            loop=self._loop,
            rng=self._rng,
        )
        replica.newcomer = pool.ready
        now = self._loop.time()
        if spec.name in self._drained:
            replica.load.drain(now)
        if spec.name in self._weights:
            replica.load.set_weight(self._weights[spec.name], now)
        pool.replicas.append(replica)
        self._recipes[name] = _recipe(model, spec)
        self._tasks[name] = self._loop.create_task(replica.run(), name=f"look at {name}")

    def _leave(self, pool: HttpPool, replica: HttpReplica) -> None:
        """No more requests to it; its connections close when those it has are answered."""
        pool.replicas.remove(replica)
        pool.ejection.remove(replica.name)
        self._recipes.pop(replica.name)
        self._shares.pop(replica.name, None)
        self._ranks.pop(replica.name, None)
        task = self._tasks.pop(replica.name)
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        replica.retire(task.cancel)

    # ----------------------------------------------------------------------------------- operators

    def replicas(self, name: str) -> list[HttpReplica]:
        """Those of that name: all addresses of one that is looked up. Empty where there is none."""
        return [
            replica
            for pool in self._pools.values()
            for replica in pool.replicas
            if name in (replica.name, configured(replica.name))
        ]

    def drain(self, name: str) -> None:
        self._drained.add(name)
        for replica in self.replicas(name):
            replica.drain(self._loop.time())

    def undrain(self, name: str) -> None:
        self._drained.discard(name)
        for replica in self.replicas(name):
            replica.undrain(self._loop.time())

    def set_weight(self, name: str, weight: float) -> None:
        self._weights[name] = weight
        for replica in self.replicas(name):
            replica.load.set_weight(weight, self._loop.time())

    def renewed(self, name: str) -> None:
        """Its process has ended, or another one was started."""
        for replica in self.replicas(name):
            replica.renewed()

    def knows(self, name: str) -> bool:
        return name in self._lookups or bool(self.replicas(name))

    # --------------------------------------------------------------------------- beginning and end

    async def met(self) -> None:
        """Until each replica has been looked at once."""
        for pool in self.pools():
            for replica in list(pool.replicas):
                await replica.met.wait()

    def say_goodbye(self) -> None:
        """The gateway is going down: close the WebSockets that pass through it."""
        for pool in self._pools.values():
            pool.say_goodbye()

    async def close(self) -> None:
        for pool in self._pools.values():
            pool.close(NoReplica("the gateway is stopping"))
        lookups = [task for _, task in self._lookups.values()]
        tasks = [*self._tasks.values(), *lookups, *self._leaving]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def configured(name: str) -> str:
    """The name in the configuration of a replica that was found by it."""
    return name.partition(FOUND_AT)[0]


def _dns_client(resolver: str | None) -> DnsClient:
    if resolver is not None:
        return DnsClient([parse_server(resolver)])
    return DnsClient(*system_servers())


def _recipe(model: ModelConfig, spec: ReplicaConfig) -> tuple[Any, ...]:
    """What a replica is made from; its weight may change while it serves."""
    relay = model.relay
    return (
        dataclasses.replace(spec, weight=1.0),
        relay.host,
        relay.connect_ms,
        relay.connections,
        relay.tls,
        stamp(relay.tls),
    )
