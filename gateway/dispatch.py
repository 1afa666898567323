"""From the queue to a replica and back: batches leave, land, and are tried again.

The shell around the policies of one model: router and batcher decide what a free slot executes, the
replica's link carries it, and every flight lands exactly once, with its answers, with a fault, or
with its replica's death. Invariants: a lease and a breaker's permit are given back by the landing
of their flight; a request is executed again only when its replica cannot have answered it.
"""

from __future__ import annotations

import logging
import time

from backends.wire import Fault, Frame, Kind, WireError
from gateway.batch import error_of, split
from gateway.departing import LATE, Departing
from gateway.errors import GatewayError, Poisonous, ReplicaNonsense
from gateway.flight import Flight
from gateway.policy.breaker import Outcome, State
from gateway.policy.deaths import DEADLY
from gateway.policy.routing import NO_KEY
from gateway.request import Answer, TensorRequest

__all__ = ["LATE", "Dispatcher"]

log = logging.getLogger(__name__)


class Dispatcher(Departing):
    def _land(self, flight: Flight, frame: Frame | None) -> None:
        """A flight's one end."""
        now, twin = self._loop.time(), flight.part()
        if twin is not None and (frame is None or frame.kind == Kind.ERROR):
            flight.leave_to(twin)
            self._give_back(flight, Outcome.FAILURE if frame is None else Outcome.NEUTRAL, now)
        elif frame is None:
            if self._tracks.channel is not None:
                version = flight.batch[0].version or flight.replica.status.version
                self._measures.compared(version, [True] * len(flight.batch), now - flight.sent)
            self._died(flight, now)
        else:
            try:
                self._read(flight, frame, now)
            except (WireError, KeyError, TypeError, ValueError) as error:
                nonsense = f"replica {flight.replica.name} answered what is no result: {error}"
                log.warning("replica=%s nonsense=%r", flight.replica.name, error)
                if twin is None:
                    error_ = ReplicaNonsense(nonsense)
                    retry = self._budget.take(now)
                    self._again(flight, error_, Outcome.FAILURE, now, retry=retry)
                else:
                    flight.leave_to(twin)
                    self._give_back(flight, Outcome.FAILURE, now)
            else:
                if twin is not None:
                    twin.lost = True
                    twin.cancel()
                if self._hedges is not None and not flight.lost:
                    self._hedges.answered(flight, now)
        self.schedule()

    def _died(self, flight: Flight, now: float) -> None:
        """Its replica has died, perhaps of one of its requests."""
        name, (first, *others) = flight.replica.name, flight.batch
        error: GatewayError = ReplicaNonsense(f"replica {name} died before it answered")
        suspected = first.key[4] is not None
        assert not (suspected and others)  # a suspect is sent alone
        for request in flight.batch:
            request.deaths += 1
            request.key = (*request.key[:4], self._quarantine.mark())
        if first.deaths >= DEADLY:  # all but the first of them with it alone
            error = Poisonous(
                f"replica {name} died of this request alone, as the one before it; it is not tried "
                "again"
            )
            log.error("replica=%s killed by one request; rows=%d", name, first.rows)
            self._again(flight, error, Outcome.NEUTRAL, now, retry=False)
            return
        if suspected:  # perhaps by chance: both were killed by somebody else
            self._again(flight, error, Outcome.NEUTRAL, now, retry=True)
            return
        # What is dead works no more: placing its batch elsewhere adds no load to the pool.
        self._again(flight, error, Outcome.FAILURE, now, retry=True)

    def _read(self, flight: Flight, frame: Frame, now: float) -> None:
        """Raises before anything has changed when the frame is no answer."""
        if frame.kind == Kind.ERROR:
            fault = Fault.from_json(frame.json())
            retry = fault.retryable and self._budget.take(now)
            self._again(flight, error_of(fault), Outcome.NEUTRAL, now, retry=retry)
            return
        meta, outcomes = split(frame, flight.batch, flight.replica.name, flight.sent)
        self._give_back(flight, Outcome.SUCCESS, now)
        if meta["batch"]:  # else nothing was run: all of it came too late
            size = round(meta["batch"] * flight.per_row)
            flight.replica.curve(meta["version"]).observe(size, meta["compute_us"] / 1e6)
            if not flight.lost:
                self._measures.answered(flight.replica.name, meta, time.time())
        if self._tracks.channel is not None:
            seconds = now - flight.sent
            self._measures.compared(meta["version"], [*map(_failed, outcomes)], seconds)
        for request, outcome in zip(flight.batch, outcomes, strict=True):
            request.flight = None  # else the two would keep each other until a collection
            if not request.finished:
                self._finish(request, outcome)

    def _again(
        self, flight: Flight, error: GatewayError, outcome: Outcome, now: float, *, retry: bool
    ) -> None:
        """Requests that no replica answered: back to the head of the queue, or failed."""
        self._give_back(flight, outcome, now)
        back: list[TensorRequest] = []
        for request in flight.batch:
            request.flight = None
            if request.finished:
                continue
            if retry and request.attempts <= self.retries:
                back.append(request)
            else:
                self._finish(request, error)
        if back:
            self._measures.retried += len(back)
            self._put_back(back, now)
            self._quarantine.wait(request for request in back if request.key[4] is not None)

    def _give_back(self, flight: Flight, outcome: Outcome, now: float) -> None:
        replica = flight.replica
        flight.lease.release(now)
        self._quarantine.landed(replica)
        replica.ended(flight.takes_s, now)
        if flight.permit.record(now, outcome) is State.CLOSED:
            replica.recovered(now)
        self._router.ended(flight.lease, NO_KEY, now, ok=outcome is Outcome.SUCCESS)
        flight.replica.settled()


def _failed(outcome: Answer | GatewayError) -> bool:
    """Whether it is the model's failure: a client's own mistake says nothing of a version."""
    return isinstance(outcome, GatewayError) and outcome.status >= 500
