"""Which replica a session's request waits for, where a model is routed by session.

Owns one seat per waiting or running request that names a session: rows that count against the
replica it is bound to, beside the leases of the batches, so that a session sees how many wait for
its replica and leaves it when that is too many. Invariant: a request has at most one seat, given up
at its end or its next placement.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.policy.load import ReplicaLoad
from gateway.policy.rendezvous import SessionRouter
from gateway.policy.routing import Router, RoutingKey
from gateway.replica import NativeReplica
from gateway.request import TensorRequest


class Seating:
    """Only replicas that serve are candidates. `used`: whether the router binds sessions at all."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self.used = isinstance(router, SessionRouter)
        self._seats: dict[str, ReplicaLoad] = {}

    def update(self, serving: Sequence[NativeReplica], now: float) -> None:
        """The replicas that can serve now, with their weights."""
        seats: dict[str, ReplicaLoad] = {}
        for replica in serving:
            seat = self._seats.get(replica.name) or ReplicaLoad(replica.name)
            seat.slots = replica.load.slots
            if seat.weight != replica.load.weight:
                seat.set_weight(replica.load.weight, now)
            seats[replica.name] = seat
        self._seats = seats

    def place(
        self, request: TensorRequest, now: float, among: frozenset[str] | None = None
    ) -> str | None:
        """The replica (of those `among`, if given) that the request is to wait for; None: any."""
        if not self.used or request.session is None:
            return None
        if request.seat is not None:
            request.seat.release(now)
        key = RoutingKey(session=request.session)
        seats = [seat for name, seat in self._seats.items() if among is None or name in among]
        seat = self._router.choose(seats, key, now, cost=request.rows)
        if seat is None:
            return None
        request.seat = seat.take(request.rows, now)
        return seat.name

    def stands(self, name: str | None) -> bool:
        """Whether a request bound to this replica may go on waiting for it."""
        return name is None or name in self._seats
