"""Which http replica of a model the next request goes to, of those that may have it.

The half of the pool that chooses: by the model's router, among replicas that are ready, whose
breakers let pass, that have not asked for a pause, and that are not set apart for a suspect. Counts
nothing and keeps nothing of a request. Invariant: what is in reserve gets nothing while one before
it can be used.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gateway.config import ModelConfig
from gateway.http_replica import HttpReplica
from gateway.policy.bounds import LoadBound
from gateway.policy.breaker import usable
from gateway.policy.load import ReplicaLoad
from gateway.policy.prefix import PrefixRouter
from gateway.policy.ranks import in_turn, preferred
from gateway.policy.rendezvous import SessionRouter
from gateway.policy.routing import Router, RoutingKey, make_router
from gateway.relay.inquest import Inquest

if TYPE_CHECKING:
    from gateway.relay.transit import Transit

# No bound: a session stays where it is.
STRICT = 1e12


class HttpChoosing:
    """`sort` after every change of the replicas."""

    def __init__(self, config: ModelConfig, rng: random.Random) -> None:
        self.name, self._rng = config.name, rng
        self.replicas: list[HttpReplica] = []
        self.inquest = Inquest(config.name)
        self._serving: list[HttpReplica] = []
        self._preferred = 0  # replicas of the ranks up to those that serve
        self._reserve: list[HttpReplica] = []  # ready too, used while none that serves can be
        self._by_load: dict[ReplicaLoad, HttpReplica] = {}
        self._loads: list[ReplicaLoad] = []
        self._strict = False
        self.router: Router

    def route_by(self, config: ModelConfig) -> None:
        self._strict = config.relay.strict and config.routing == "session"
        self.router = (
            SessionRouter(self._rng, LoadBound(factor=STRICT))
            if self._strict
            else make_router(config.routing, self._rng)
        )

    def sort(self) -> None:
        """A replica came, went, or is in another state."""
        ready = [replica for replica in self.replicas if replica.ready]
        self._serving, self._reserve = in_turn(ready)
        self._preferred = preferred(self.replicas, self._serving)
        self._loads = [replica.load for replica in self._serving]
        self._by_load = {replica.load: replica for replica in ready}
        for replica in self.replicas:
            replica.reserve = replica in self._reserve

    def came_back(self, replica: HttpReplica) -> None:
        """It is another process now, and remembers no prompt."""
        if isinstance(self.router, PrefixRouter):
            self.router.forget(replica.name)

    def _choose(self, key: RoutingKey, tried: Sequence[str], now: float) -> HttpReplica | None:
        serving = self._serving
        for replica in serving:
            if (
                not replica.breaker.closed
                or replica.busy_until > now
                or replica.load.in_flight >= replica.limit
            ):
                break
        else:
            if not tried and not self.inquest.guarded:
                chosen = self.router.choose(self._loads, key, now)
                return None if chosen is None else self._by_load[chosen]
        return self._choose_carefully(key, tried, now)

    def _choose_carefully(
        self, key: RoutingKey, tried: Sequence[str], now: float
    ) -> HttpReplica | None:
        """Where some replicas are ejected, busy, full, or have failed this request."""
        able, admits = self._able(now), self.inquest.admits
        guarded, bound = self.inquest.guarded, self._strict and key.session is not None
        if guarded and not bound:
            able = [r for r in able if admits(r)]
        for wanted in (
            [r for r in able if r.name not in tried and r.busy_until <= now],
            [r for r in able if r.name not in tried],
            [r for r in self._reserve if tried and r.name not in tried and r.breaker.closed],
            [r for r in able if r.name not in tried[-1:]],
            able,
        ):
            if not wanted:
                continue
            chosen = self.router.choose([r.load for r in wanted], key, now)
            if chosen is None:
                continue
            found = self._by_load[chosen]
            if chosen.in_flight < found.limit and (not guarded or admits(found)):
                return found
            if bound:
                return None  # it waits for its own replica
            free = [r.load for r in wanted if r.load.in_flight < r.limit]
            chosen = self.router.choose(free, key, now) if free else None
            if chosen is not None:
                return self._by_load[chosen]
        return None

    def _able(self, now: float) -> Sequence[HttpReplica]:
        """Of whom breakers let pass; those in reserve where they let nobody else."""
        reserve = self._reserve
        able, panic = usable(self._serving, self._preferred, now)
        while reserve and (panic or not able):
            group, reserve = in_turn(reserve)
            found, distrusted = usable(group, len(group), now)
            if found and not distrusted:
                return found
        return able

    def others(self, transit: Transit, now: float) -> int:
        """Replicas in use that have not failed it, beside the one that it is on."""
        here = transit.replica
        tried = transit.tried
        known = [*self._serving, *self._reserve] if self._reserve else self._serving
        return sum(r is not here and r.name not in tried for r in known)
