"""All models of a worker and the replicas that serve them, by name.

Owns the tasks that keep the replicas' links. It decides nothing about a request: its model does.
Invariant: a replica name is in the fleet once, and so are its task and its load.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from backends.wire import SURFACES
from gateway.config import GatewayConfig, ModelConfig, ReplicaConfig
from gateway.errors import GatewayError, ModelNotFound, NoReplica, NotFound
from gateway.generation.door import Door, Doors
from gateway.generation.reply import Backlog
from gateway.http_fleet import HttpFleet
from gateway.http_pool import HttpPool
from gateway.measures import Family
from gateway.model import Model, Switch
from gateway.openai.native import NativeDestination
from gateway.replica import NativeReplica


class Fleet:
    """`runtime`: the folder of the sockets of spawned replicas. `gateway` names this worker to
    them; `switch` loads or unloads a model in all workers. `http` has the models that are relayed:
    their surface is another one. `weight` is a tenant's, beside others that wait."""

    def __init__(
        self,
        config: GatewayConfig,
        runtime: Path,
        *,
        gateway: str,
        switch: Switch,
        loop: asyncio.AbstractEventLoop,
        rng: random.Random,
        weight: Callable[[str], float] = lambda tenant: 1.0,
    ) -> None:
        self._weight = weight
        self._runtime, self._gateway, self._loop, self._rng = runtime, gateway, loop, rng
        self._switch = switch
        self._models: dict[str, Model] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self.http = HttpFleet(runtime, loop=loop, rng=rng, weight=weight)
        self._doors = Doors()
        self._by_door: dict[str, Door] = {}
        self.apply(config)

    # ------------------------------------------------------------------------------- the directory

    def model(self, name: str) -> Model:
        found = self._models.get(name)
        if found is None:
            known = ", ".join(sorted(self._models)) or "none"
            raise ModelNotFound(f"there is no model {name!r}; this gateway serves {known}")
        return found

    def models(self) -> Sequence[Model]:
        return list(self._models.values())

    def readiness(self) -> tuple[bool, dict[str, Any]]:
        """Whether every model has a ready replica, and what is said where not."""
        waiting = {
            m.name: m.reason() for m in self._models.values() if not m.ready and not m.unloaded
        }
        waiting |= {pool.name: pool.reason() for pool in self.http.pools() if not pool.ready}
        return not waiting, {"models": waiting} if waiting else {}

    def replica(self, name: str) -> NativeReplica:
        for model in self._models.values():
            for replica in model.replicas:
                if replica.name == name:
                    return replica
        raise NotFound(f"there is no replica {name!r}")

    # ----------------------------------------------------------------------------------- operators

    def drain(self, name: str) -> None:
        """No new work for it. Raises NotFound, as all of these."""
        if self.http.knows(name):
            self.http.drain(name)
        else:
            self.replica(name).drain(self._loop.time())

    def undrain(self, name: str) -> None:
        if self.http.knows(name):
            self.http.undrain(name)
        else:
            self.replica(name).undrain(self._loop.time())

    def set_weight(self, name: str, weight: float) -> None:
        if self.http.knows(name):
            self.http.set_weight(name, weight)
        else:
            self.replica(name).set_weight(weight, self._loop.time())

    async def met(self, within_s: float) -> None:
        """Until each replica has been heard or has turned out not to be there."""
        try:
            async with asyncio.timeout(within_s):
                for model in self.models():
                    for replica in list(model.replicas):
                        await replica.met.wait()
                await self.http.met()
        except TimeoutError:
            return

    # ------------------------------------------------------------------------------------- changes

    def apply(self, config: GatewayConfig) -> None:
        """Make the fleet what `config` says, keeping what is the same."""
        self.http.apply(config)
        wanted = {model.name: model for model in config.models if not model.http}
        for name in [name for name in self._models if name not in wanted]:
            self._retire(self._models.pop(name), NotFound(f"model {name!r} is no longer served"))
        for name, model_config in wanted.items():
            model = self._models.get(name)
            if model is None:
                model = self._models[name] = Model(
                    model_config,
                    switch=self._switch,
                    loop=self._loop,
                    rng=self._rng,
                    weight=self._weight,
                )
            else:
                model.reconfigure(model_config)
            self._match_replicas(model, model_config)
        self.http.surface.add(self._named())

    def _named(self) -> dict[str, NativeDestination]:
        """What clients of /v1 may ask for, made anew: a model may take calls by other names now."""
        held, named = self.http.surface.held, {}
        self._by_door = {}
        for model in self._models.values():
            door = self._by_door[model.name] = Door(model.calls, self._doors)
            for name in model.config.generation.names or (model.name,):
                named[name] = NativeDestination(door, held)
        return named

    @property
    def backlog(self) -> Backlog:
        """What all clients of calls have not taken yet."""
        return self._doors.backlog

    def offered(self) -> frozenset[str]:
        """What of /v1 some model answers. An http replica may answer anything there."""
        relayed = any(pool.config.relay.api == "openai" for pool in self.http.pools())
        own = {name for model in self._models.values() for name in model.surfaces}
        return frozenset(own | set(SURFACES) if relayed else own)

    def door(self, model: str) -> Door:
        """Where calls of the model come in. Raises ModelNotFound."""
        return self._by_door[self.model(model).name]

    def _match_replicas(self, model: Model, config: ModelConfig) -> None:
        wanted = {replica.name: replica for replica in config.replicas}
        for replica in list(model.replicas):
            spec = wanted.get(replica.name)
            if spec is None or spec.socket(self._runtime) != replica.address:
                model.replicas.remove(replica)
                model.ejection.remove(replica.name)
                self._end(replica)
        have = {replica.name: replica for replica in model.replicas}
        for name, spec in wanted.items():
            if name in have:
                have[name].expects = config.kind
                have[name].set_weight(spec.weight, self._loop.time())
            else:
                self._begin(model, spec)
        model.changed()

    def _begin(self, model: Model, spec: ReplicaConfig) -> None:
        replica = NativeReplica(
            spec.name,
            spec.socket(self._runtime),
            model=model.name,
            weight=spec.weight,
            gateway=self._gateway,
            on_change=model.changed,
            breaker=model.ejection.add(spec.name, rng=self._rng),
            rng=self._rng,
            expects=model.config.kind,
        )
        model.replicas.append(replica)
        self._tasks[spec.name] = self._loop.create_task(replica.run(), name=f"link {spec.name}")

    def _end(self, replica: NativeReplica) -> None:
        """No more batches to it; its link is closed when those it has are answered."""
        task = self._tasks.pop(replica.name)
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        replica.retire(task.cancel)

    def _retire(self, model: Model, error: GatewayError) -> None:
        model.close(error)
        for replica in model.replicas:
            self._end(replica)

    async def close(self) -> None:
        for model in self._models.values():
            model.close(NoReplica("the gateway is stopping"))
        tasks = [*self._tasks.values(), *self._leaving]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.http.close()

    # --------------------------------------------------------------------------------------- views

    def status(self) -> list[dict[str, Any]]:
        return [model.status() for model in self._all()]

    def _all(self) -> Sequence[Model | HttpPool]:
        return [*self._models.values(), *self.http.pools()]

    def families(self) -> list[Family]:
        """All metric families of this worker."""
        merged: dict[str, Family] = {}
        for model in self._all():
            for family in model.families():
                if family[0] in merged:
                    merged[family[0]] += family[4:]
                else:
                    merged[family[0]] = list(family)
        return list(merged.values())
