"""What routers read and how they are called: the candidate, the routing key, the router protocol.

A router picks among the candidates that the caller found able to serve (connected, its breaker
not open, not excluded by a retry) and moves no counter; the caller then takes the lease. None
means that no candidate has any share. Randomness comes from the generator given at construction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

from gateway.policy.load import Lease


class Candidate(Protocol):
    """What routers read of a replica; `ReplicaLoad` is one. `share` 0 means: not by routing.
    Before reading `share` of a candidate that is `ramping`, a router calls `refresh(now)`."""

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
    block of the prompt, each covering all before it; the token counts are 0 where unknown.
    `spared`: how much of its cost a replica of that name would be spared, holding a part of it."""

    session: str | None = None
    prefix: tuple[int, ...] = ()
    tokens_in: int = 0
    tokens_out: float = 0.0
    spared: Mapping[str, float] | None = None


NO_KEY = RoutingKey()


class Router(Protocol):
    """`sent` and `ended` are how routers that learn do so; the caller reports both, every time."""

    def choose(
        self, candidates: Sequence[C], request: RoutingKey, now: float, *, cost: float = 1.0
    ) -> C | None: ...

    def sent(self, lease: Lease, request: RoutingKey, now: float) -> None:
        """The request was sent under this lease."""

    def ended(self, lease: Lease, request: RoutingKey, now: float, *, ok: bool) -> None:
        """The request of this lease ended, well or not; call before or after the release, once."""


class Unlearned:
    """For routers that learn nothing."""

    def sent(self, lease: Lease, request: RoutingKey, now: float) -> None:
        pass

    def ended(self, lease: Lease, request: RoutingKey, now: float, *, ok: bool) -> None:
        pass
