"""Which replica a request goes to: the routers' protocol, weighted least-connections, the names.

A router picks among the candidates that the caller found able to serve (connected, its breaker
not open, not excluded by a retry) and changes no counter; the caller then takes the lease. None
means that no candidate has any share. Randomness comes from the generator given at construction.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

from gateway.policy.load import Lease


class Candidate(Protocol):
    """What routers read of a replica; `ReplicaLoad` is one."""

    @property
    def name(self) -> str: ...
    @property
    def weight(self) -> float: ...
    @property
    def share(self) -> float: ...
    @property
    def ramping(self) -> bool: ...
    @property
    def work(self) -> float: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def slots(self) -> int: ...
    def refresh(self, now: float) -> None: ...


C = TypeVar("C", bound=Candidate)


class RoutingKey(NamedTuple):
    """What routers may know of a request. `session` names the session; `prefix` holds one hash per
    block of the prompt, each covering all before it; the token counts are 0 where unknown."""

    session: str | None = None
    prefix: tuple[int, ...] = ()
    tokens_in: int = 0
    tokens_out: float = 0.0


NO_KEY = RoutingKey()


@runtime_checkable
class Router(Protocol):
    """`sent` and `ended` are how routers that learn do so; the caller reports both, every time."""

    def choose(
        self, candidates: Sequence[C], request: RoutingKey, now: float, *, cost: float = 1.0
    ) -> C | None: ...

    def sent(self, candidate: Candidate, request: RoutingKey, now: float) -> None:
        """The request was sent to this candidate (and its lease taken)."""

    def ended(self, lease: Lease, request: RoutingKey, now: float, *, ok: bool) -> None:
        """The request of this lease ended; call before or after the release, once."""


class Unlearned:
    """For routers that learn nothing."""

    def sent(self, candidate: Candidate, request: RoutingKey, now: float) -> None:
        pass

    def ended(self, lease: Lease, request: RoutingKey, now: float, *, ok: bool) -> None:
        pass


class WeightedLeastConnections(Unlearned):
    """Least `(work + cost) / share`, where share is weight × slow start × health.

    Counting the request's own cost sends it to the fastest of the idle ones. Ties are broken at
    random: with a fixed order, workers that share replicas would all herd to the first.
    """

    def __init__(self, rng: random.Random | None = None) -> None:
        self._random = (rng or random.Random()).random

    def choose(
        self, candidates: Sequence[C], request: RoutingKey, now: float, *, cost: float = 1.0
    ) -> C | None:
        best, lowest, ties = None, float("inf"), 1
        for candidate in candidates:
            if candidate.ramping:
                candidate.refresh(now)
            share = candidate.share
            if share <= 0.0:
                continue
            score = (candidate.work + cost) / share
            if score < lowest:
                best, lowest, ties = candidate, score, 1
            elif score == lowest:
                ties += 1
                if self._random() * ties < 1.0:
                    best = candidate
        return best


def make_router(name: str, rng: random.Random | None = None) -> Router:
    """The router of that name in the configuration."""
    if name == "wlc":
        return WeightedLeastConnections(rng)
    raise ValueError(f"routing must be one of wlc, not {name!r}")
