"""Out of the queue: which batch goes to which replica, with what it holds of it on the way.

The half of the dispatcher that sends; what comes back is `dispatch`'s. Router, batcher and
quarantine decide what a free slot executes. Invariant: a flight that leaves holds a lease and a
permit, and its requests wait nowhere else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from backends.wire import Frame, WireError
from gateway.batch import gather
from gateway.config import CanaryConfig
from gateway.errors import DeadlineExceeded, GatewayError, Shed, TooLarge
from gateway.flight import Flight
from gateway.hedges import Hedges
from gateway.measures import Measures
from gateway.policy.batching import Batcher, Refusal
from gateway.policy.breaker import Outcome, usable
from gateway.policy.retry import RetryBudget
from gateway.policy.routing import NO_KEY, Router
from gateway.quarantine import Quarantine
from gateway.replica import NativeReplica
from gateway.request import Answer, TensorRequest
from gateway.seating import Seating
from gateway.tracks import Tracks
from gateway.waiting import Waiting

LATE = "the deadline passed before a replica could answer"
_WHEN_TOLD = float("inf")


class Departing:
    """`finish(request, outcome)` ends a request; `retries` is how many further replicas it may be
    sent to; `weight` is a tenant's. The retry budget counts batches. A request's key is (what may
    share a batch, the pinned version, the replica it is bound to, its track, a mark of its own if
    it is a suspect)."""

    def __init__(
        self,
        queue: Batcher[TensorRequest],
        router: Router,
        *,
        retries: int,
        canary: CanaryConfig,
        finish: Callable[[TensorRequest, Answer | GatewayError], None],
        measures: Measures,
        loop: asyncio.AbstractEventLoop,
        weight: Callable[[str], float],
    ) -> None:
        self.queue, self._router, self.retries = Waiting(queue, weight), router, retries
        self._finish, self._measures, self._loop = finish, measures, loop
        self._budget = RetryBudget()
        self._seating = Seating(router)
        self._tracks = Tracks(canary)
        self._quarantine: Quarantine[NativeReplica, TensorRequest] = Quarantine()
        self._hedges: Hedges | None = None
        self._replicas: list[NativeReplica] = []
        self._serving: list[NativeReplica] = []
        self._mixed = False
        self._due = False
        self._wake: asyncio.TimerHandle | None = None

    def route_by(self, router: Router) -> None:
        """Another router, for what waits too."""
        self._router, self._seating = router, Seating(router)
        self._seating.update(self._serving, self._loop.time())

    def hedge_by(self, share: float | None) -> None:
        """Of the batches, so many may have a copy; None: none may."""
        if share is None:
            self._hedges = None
        elif self._hedges is None or self._hedges.share != share:
            self._hedges = Hedges(share, self._copy, self._loop)

    def split_by(self, canary: CanaryConfig) -> None:
        """Another canary; what waits is told apart anew by `reseat`."""
        self._tracks = Tracks(canary)
        self._tracks.update(self._serving)

    def update(self, replicas: list[NativeReplica]) -> None:
        """The replicas, or what they can do, changed."""
        self._replicas = replicas
        self._serving = [replica for replica in replicas if replica.ready]
        self.queue.replicas = len(self._serving)
        self._seating.update(self._serving, self._loop.time())
        self._tracks.update(self._serving)
        # With one version everywhere, every replica can run every request.
        self._mixed = len({version for r in self._serving for version in r.status.versions}) > 1
        self.schedule()

    def schedule(self) -> None:
        """Look at the queue once this turn of the loop is over: what arrives within one turn is
        seen together."""
        if not self._due:
            self._due = True
            self._loop.call_soon(self._pump)

    def add(self, request: TensorRequest, now: float) -> Refusal | None:
        """Queue a request that has just come, whose key says what may share a batch."""
        request.key = (request.key, request.version, None, None, None)
        if self._seating.used or self._tracks.channel is not None:
            self._bind(request, now)  # else it is bound to nothing
        if request.tenant:
            return self.queue.add(request, now)
        return self.queue.batcher.add(request, now)

    def replace(self, waiting: Sequence[TensorRequest], queue: Batcher[TensorRequest]) -> None:
        """Another queue, with what waits in the old one, oldest first."""
        self.queue.replace(queue)
        inside = [request for request in waiting if request not in self.queue]
        self._put_back(inside, self._loop.time())
        self.schedule()

    def reseat(self, waiting: Sequence[TensorRequest]) -> None:
        """Bind anew what waits for replicas that serve no more."""
        lost, now = [request for request in waiting if not self._stands(request)], self._loop.time()
        for request in [request for request in lost if request in self.queue]:
            self._bind(request, now)
            lost.remove(request)
        for request in lost:
            self.queue.discard(request)
        self._put_back(lost, now)

    def _put_back(self, requests: Sequence[TensorRequest], now: float) -> None:
        """To the head of the queue, each bound to a replica that can serve it."""
        for request in requests:
            if not self._stands(request):
                self._bind(request, now)
        self.queue.requeue(requests, now)

    def _stands(self, request: TensorRequest) -> bool:
        _, version, seat, track, _ = request.key
        if seat is not None and version is not None and seat not in self._holders(version):
            return False
        return self._seating.stands(seat) and self._tracks.stands(track, version)

    def _holders(self, version: str) -> frozenset[str]:
        return frozenset(replica.name for replica in self._serving if replica.serves(version))

    def _bind(self, request: TensorRequest, now: float) -> None:
        """The track that the request waits on, and the replica of it where sessions are bound."""
        what, version, _, _, mark = request.key
        track = self._tracks.place(request.session, version)
        among = self._tracks.members(track) if version is None else self._holders(version)
        seat = self._seating.place(request, now, among)
        # Suspects go where they harm nobody else, whatever their session.
        request.key = (what, version, seat if mark is None else None, track, mark)

    def withdraw(self, request: TensorRequest) -> None:
        """A request that ended without its answer: out of the queue; and when nobody waits for its
        flight any more, the replica is told."""
        flight = request.flight
        if flight is None:
            self.queue.discard(request)
            self._quarantine.forget(request)
        else:
            assert isinstance(flight, Flight)
            if all(other.finished for other in flight.batch):
                flight.cancel()

    def close(self) -> None:
        if self._wake is not None:
            self._wake.cancel()

    # ---------------------------------------------------------------------------------- departures

    def _pump(self) -> None:
        """Fill free slots while there is something to send."""
        self._due = False
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        while len(self.queue):
            wake = self._send_one(self._loop.time())
            if wake is None:
                continue
            if wake < _WHEN_TOLD:
                self._wake = self._loop.call_at(wake, self._pump)
            return

    def _send_one(self, now: float) -> float | None:
        """Send one batch: None. Nothing to send: when to look again."""
        able, panic = usable(self._serving, len(self._replicas), now)
        by_load = {r.load: r for r in able if r.load.in_flight < r.load.slots}
        if self._quarantine:
            self._quarantine.assign(able, lambda r, request: self._runs(r)(request.key))
            by_load = {load: r for load, r in by_load.items() if self._quarantine.admits(r)}
        # A replica executes one batch at a time; its further slots only hide the way to it.
        free, slots = len(by_load), len(able)
        wake = _WHEN_TOLD
        # What a batch will weigh: leases are in the same unit, rows or what the budget counts.
        cost = float(min(self.queue.size, self.queue.limit))
        while by_load:
            chosen = self._router.choose(list(by_load), NO_KEY, now, cost=cost)
            if chosen is None:
                break
            replica = by_load.pop(chosen)
            plan = self.queue.next(
                now,
                free=free,
                slots=slots,
                curve=replica.curve(None),
                ahead=replica.ahead_s(now),
                accept=self._accepts(replica),
            )
            for request in plan.dropped:
                self._quarantine.forget(request)
                self._finish(request, self._given_up(request, now))
            if plan.batch:
                self._send(plan.batch, plan.reason, replica, panic, now)
                return None
            if plan.wake is not None:
                wake = min(wake, plan.wake)
            if plan.reason != "unaccepted":
                return wake
            # Nothing that this replica can run: another may hold the version or be the one bound.
        if len(able) < len(self._serving):
            probes = [at for r in self._serving if (at := r.breaker.next_probe(now)) is not None]
            wake = min([wake, *probes])
        return wake

    def _given_up(self, request: TensorRequest, now: float) -> GatewayError:
        """Why the queue gave it up: its time is over, or others fill what is left of it."""
        if request.deadline <= now:
            return DeadlineExceeded(LATE)
        return Shed(
            "overloaded: the request could not be answered by its deadline",
            retry_after=self.queue.drained_in(now),
        )

    def _send(
        self,
        batch: list[TensorRequest],
        reason: str,
        replica: NativeReplica,
        panic: bool,
        now: float,
    ) -> None:
        rows = sum([request.rows for request in batch])
        flight = self._flight(batch, rows, replica, panic, now)
        self._budget.request(now)
        for request in batch:
            request.attempts += 1
            request.flight = flight
        if batch[0].key[4] is not None:
            self._quarantine.sent(batch[0], replica)
        elif self._hedges is not None:
            self._hedges.sent(flight, now)
        self._measures.sent(reason, rows, [now - request.arrived for request in batch])
        try:
            self._depart(flight, now)
        except WireError as error:
            flight.part()
            self._give_back(flight, Outcome.NEUTRAL, now)
            for request in batch:
                self._finish(request, TooLarge(f"the batch is too large for the wire: {error}"))

    def _flight(
        self,
        batch: list[TensorRequest],
        rows: int,
        replica: NativeReplica,
        panic: bool,
        now: float,
    ) -> Flight:
        """With all that it holds of its replica."""
        permit = replica.breaker.allow(now, panic=panic)
        assert permit is not None  # `usable` said so, at this very moment
        cost = self.queue.knobs.cost
        size = rows if cost is None else sum(map(cost, batch))
        takes_s = replica.curve(batch[0].version).mean(size)
        replica.began(takes_s, now)
        lease = replica.load.take(size, now)
        self._router.sent(lease, NO_KEY, now)
        return Flight(batch, replica, lease, permit, now, size / rows, takes_s)

    def _depart(self, flight: Flight, now: float) -> None:
        """Raises WireError."""
        meta, data = gather(flight.batch, now)
        flight.id = flight.replica.execute(meta, data, lambda frame: self._land(flight, frame))

    def _copy(self, flight: Flight, take: Callable[[float], bool]) -> None:
        """Send what of it still waits to another replica too, if one has nothing better to do."""
        now = self._loop.time()
        batch = [request for request in flight.batch if not request.finished]
        if not batch or len(self.queue) or self._quarantine:
            return
        able, panic = usable(self._serving, len(self._replicas), now)
        _, version, _, track, _ = batch[0].key
        free = {
            r.load: r
            for r in able
            if r is not flight.replica and not r.load.in_flight and r.serves(version)
        }
        free = {load: r for load, r in free.items() if self._tracks.serves(r.name, track)}
        chosen = self._router.choose(list(free), NO_KEY, now) if free else None
        if chosen is None or not take(now):
            return
        rows = sum([request.rows for request in batch])
        twin = self._flight(batch, rows, free[chosen], panic, now)
        twin.sent = flight.sent
        flight.twin, twin.twin = twin, flight
        self._measures.hedged += 1
        self._depart(twin, now)  # as large as before at most, so the wire takes it

    def _land(self, flight: Flight, frame: Frame | None) -> None:
        """A flight's one end."""
        raise NotImplementedError

    def _give_back(self, flight: Flight, outcome: Outcome, now: float) -> None:
        raise NotImplementedError

    def _accepts(self, replica: NativeReplica) -> Callable[[Any], bool] | None:
        """The keys that may be sent to it now; None: all."""
        runs = self._runs(replica) if self._mixed or self._seating.used else None
        if not self._quarantine:
            return runs
        alone = self._quarantine.only_suspects(replica)
        return lambda key: (key[4] is not None) is alone and (runs is None or runs(key))

    def _runs(self, replica: NativeReplica) -> Callable[[Any], bool]:
        """Whether it holds the version that a key pins, is the one bound to, and on the track."""
        name, serves, tracks = replica.name, replica.serves, self._tracks
        return lambda key: key[2] in (None, name) and serves(key[1]) and tracks.serves(name, key[3])
