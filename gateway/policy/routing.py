"""Routing: which replica a request goes to. The names of the routers and what they share."""

from __future__ import annotations

import random
from collections.abc import Callable

from gateway.policy.candidate import NO_KEY, Candidate, Router, RoutingKey
from gateway.policy.classic import (
    LeastConnections,
    PowerOfTwo,
    WeightedRandom,
    WeightedRoundRobin,
)
from gateway.policy.leastwork import WeightedLeastConnections
from gateway.policy.predictive import Predictive
from gateway.policy.prefix import PrefixRouter
from gateway.policy.rendezvous import SessionRouter

__all__ = ["NO_KEY", "ROUTERS", "Candidate", "Router", "RoutingKey", "make_router"]

_MAKERS: dict[str, Callable[[random.Random], Router]] = {
    "wlc": WeightedLeastConnections,
    "wrr": WeightedRoundRobin,
    "random": WeightedRandom,
    "p2c": PowerOfTwo,
    "least-connections": LeastConnections,
    "session": SessionRouter,
    "prefix": PrefixRouter,
    "predictive": Predictive,
}
ROUTERS = tuple(_MAKERS)


def make_router(name: str, rng: random.Random | None = None) -> Router:
    """The router of that name in the configuration."""
    maker = _MAKERS.get(name)
    if maker is None:
        raise ValueError(f"routing must be one of {', '.join(ROUTERS)}, not {name!r}")
    return maker(rng or random.Random())
