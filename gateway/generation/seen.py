"""A replica as one worker's calls see it: the work that it has, corrected by what it says itself.

Routers choose among these. Owns no counter: leases are taken on the replica's own. What a replica
says of its backlog has the calls of other gateways in it, and answers that are longer than we had
guessed; but it grows old, and until it does our own view moves from there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.wire import Status
from gateway.policy.breaker import Breaker
from gateway.policy.load import ReplicaLoad
from gateway.policy.tokens import TokenWork

if TYPE_CHECKING:
    from gateway.replica import NativeReplica

# Past it a replica's word on its backlog says nothing of now.
STALE_S = 2.0
# What a replica takes at a time that says nothing of it; it queues the rest by itself.
UNTOLD = 1024


class Seen:
    """A `policy.candidate.Candidate`, and `policy.breaker.Guarded`."""

    __slots__ = ("_off", "_status", "_told", "busy_until", "load", "name", "replica")

    def __init__(self, replica: NativeReplica) -> None:
        self.replica, self.name = replica, replica.name
        self.load: ReplicaLoad = replica.calls
        self.busy_until = 0.0
        self._off = 0.0  # what the replica has beyond what we know of
        self._told = float("-inf")
        self._status: Status | None = None  # the newest

    def heard(self, work: TokenWork, now: float) -> None:
        """It may have said something new, and in it how much it has to do."""
        status = self.replica.status
        if status is self._status:
            return
        self._status = status
        if status.load:
            self.told(status.load, work, now)

    def told(self, load: dict[str, float], work: TokenWork, now: float) -> None:
        """What it has to do, beside other numbers."""
        work.rates(load.get("prefill_rate", 0.0), load.get("decode_rate", 0.0))
        if "prompt_tokens" in load and "output_tokens" in load:
            backlog = load["prompt_tokens"] + work.weight * load["output_tokens"]
            # Less than we know of is no news: it has not read yet what we have just sent.
            self._off, self._told = max(0.0, backlog - self.load.work), now

    def settle(self, now: float) -> None:
        """Before it is compared with others."""
        if self._off and now - self._told > STALE_S:
            self._off = 0.0

    def takes(self, surface: str) -> bool:
        return surface in self.replica.surfaces

    @property
    def full(self) -> bool:
        # Of other kinds `slots` are batches, and calls are a part of those.
        runs = self.load.slots if self.replica.status.kind == "llm" else 1
        return self.load.in_flight >= (runs if runs > 1 else UNTOLD)

    @property
    def breaker(self) -> Breaker:
        return self.replica.breaker

    # ------------------------------------------------------------------------ what routers read

    @property
    def weight(self) -> float:
        return self.load.weight

    @property
    def share(self) -> float:
        return self.load.share

    @property
    def ramping(self) -> bool:
        return self.load.ramping

    @property
    def work(self) -> float:
        return self.load.work + self._off

    @property
    def in_flight(self) -> int:
        return self.load.in_flight

    @property
    def slots(self) -> int:
        return self.load.slots

    def refresh(self, now: float) -> None:
        self.load.refresh(now)
