"""Every tensor request of one model that waits: inside its batcher, and beyond that by turns.

Owns both, and who moves from one to the other. While one batch after another takes all that comes,
and wherever there are no tenants, everything is inside and nothing here costs anything. Invariant:
a request waits in one of them, or in neither.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from gateway.policy.anteroom import BATCHES, Anteroom
from gateway.policy.batching import Batcher, BatchingKnobs, Plan, Refusal
from gateway.policy.fairness import Waiting as Place
from gateway.policy.service import ServiceCurve
from gateway.request import TensorRequest


class Waiting:
    """As a `Batcher`, for more than one tenant. `weight`: a tenant's; `replicas`: how many serve.
    What leaves without its turn, because another one's needs its room more or its time is over, is
    in the next plan's `dropped`."""

    def __init__(self, batcher: Batcher[TensorRequest], weight: Callable[[str], float]) -> None:
        self.batcher = batcher
        self._outside: Anteroom[TensorRequest] = Anteroom(weight, self._size_of)
        self._dropped: list[TensorRequest] = []
        self.replicas = 1

    def __len__(self) -> int:
        return len(self.batcher) + len(self._outside) + len(self._dropped)

    def __contains__(self, request: TensorRequest) -> bool:
        """Whether it waits outside."""
        return request in self._outside

    @property
    def knobs(self) -> BatchingKnobs:
        return self.batcher.knobs

    @property
    def size(self) -> int:
        return self.batcher.size

    @property
    def limit(self) -> int:
        return self.batcher.limit

    @property
    def _window(self) -> int:
        return BATCHES * self.batcher.limit * max(1, self.replicas)

    def replace(self, batcher: Batcher[TensorRequest]) -> None:
        """Another batcher; what was inside the old one is put back by the caller."""
        self.batcher = batcher

    def add(self, request: TensorRequest, now: float) -> Refusal | None:
        """Of a tenant; what belongs to none goes to the batcher straight."""
        batcher, outside = self.batcher, self._outside
        if not len(outside) and batcher.size < self._window:
            return batcher.add(request, now)
        knobs = batcher.knobs
        if request.rows > knobs.max_batch_size or self._size_of(request) > batcher.limit:
            return Refusal(None, "too_large")
        refusal, out = outside.enter(
            request,
            now,
            inside=batcher.size,
            rate=batcher.departures.rate(now),
            rows=max(0, knobs.max_queue - batcher.rows),
        )
        batcher.arrivals.observe(now, self._size_of(request))
        self._dropped += out
        return refusal

    def discard(self, request: TensorRequest) -> bool:
        if self._dropped and request in self._dropped:
            self._dropped.remove(request)
            return True
        return self._outside.discard(request) or self.batcher.discard(request)

    def requeue(self, requests: Sequence[TensorRequest], now: float) -> None:
        self.batcher.requeue(requests, now)

    def next(
        self,
        now: float,
        *,
        free: int,
        slots: int,
        curve: ServiceCurve,
        accept: Callable[[Hashable], bool] | None = None,
        ahead: float = 0.0,
    ) -> Plan[TensorRequest]:
        batcher = self.batcher
        guests = self._let_in(now) if len(self._outside) and free else ()
        plan = batcher.next(now, free=free, slots=slots, curve=curve, accept=accept, ahead=ahead)
        for place in guests:
            if place.item is not None and batcher.discard(place.item):
                self._outside.put_back(place)
        if self._dropped:
            plan.dropped.extend(self._dropped)
            self._dropped.clear()
        return plan

    def drained_in(self, now: float) -> float | None:
        """Seconds until what waits now has been sent, at the present pace."""
        if not len(self._outside):
            return self.batcher.drained_in(now)
        rate = self.batcher.departures.rate(now)
        return (self.batcher.size + self._outside.size) / rate if rate > 0.0 else None

    def _let_in(self, now: float) -> Sequence[Place[TensorRequest]]:
        """A batch's worth, by turns."""
        batcher, guests = self.batcher, []
        room = batcher.limit - batcher.size
        while room > 0 and (place := self._outside.next()) is not None:
            assert place.item is not None
            guests.append(place)
            room -= self._size_of(place.item)
        batcher.requeue([place.item for place in guests if place.item is not None], now)
        return guests

    def _size_of(self, request: TensorRequest) -> int:
        cost = self.batcher.knobs.cost
        return request.rows if cost is None else cost(request)
