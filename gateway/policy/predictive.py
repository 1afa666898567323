"""Routing by predicted completion time, learned online from the requests' own times.

Predicts, for each candidate, the wait behind what this worker has there plus the service of this
request, and takes the least. Learns each replica's seconds per unit of cost, and across the pool
how service grows with cost, batch and tokens. Falls back to least work while its predictions are
few or bad. A replica not heard of for a while is given the benefit of the doubt, so that one that
was slow is tried again. Reads no clock.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from math import exp, log, sqrt
from statistics import median

from gateway.policy.candidate import C, Candidate, RoutingKey
from gateway.policy.leastwork import WeightedLeastConnections
from gateway.policy.load import Lease
from gateway.policy.regression import Features, Shape

_KNOWN = 32  # completions before predictions are used
_UNSURE = 1.5  # typical error of the logarithm (a factor of 4.5) above which they are not
_DRIFT = 0.1  # variance per second by which a replica's logarithmic speed may change unseen
_DOUBT = 1.5  # standard errors within which a replica counts as no different from the others
_BETTER = log(2.0)  # by which a replica may be believed faster than its weight promises
_WARM = 16  # completions after which what was learned of a new replica replaces slow start
_EVEN = 0.1  # the least part of its cost that a request is taken to lose to others beside it
_STALL = 0.5  # of the time for which no slot has turned over, expected to pass until one does
_KEPT = 0.999  # of the slots found beyond those declared, per request that was served in turn
_CLIP = 4.0  # times the prediction; longer ones tell of the request rather than of the replica


class _Flight:
    __slots__ = ("began", "features", "predicted", "shape", "wait")

    def __init__(
        self, features: Features, shape: float, wait: float, predicted: float, began: float | None
    ) -> None:
        self.features, self.shape, self.wait = features, shape, wait
        self.predicted, self.began = predicted, began


class _Replica:
    """What is known of one. `seconds` per unit of cost is what decisions use; `log`, `variance` and
    `heard` are the estimate behind it (a Kalman filter on the logarithm). Requests are taken to be
    served in order on `slots` slots, which gives each the time at which its service began."""

    __slots__ = (
        "declared",
        "fresh",
        "generation",
        "heard",
        "log",
        "more",
        "promise",
        "queued",
        "running",
        "seconds",
        "seen",
        "slots",
        "started",
        "turned",
        "variance",
        "waiting",
    )

    def __init__(self, candidate: Candidate, seconds: float) -> None:
        self.declared = self.slots = max(1, candidate.slots)
        self.more = 0.0  # slots found beyond those declared
        self.generation = self.fresh = 0
        self.started = float("-inf")
        self.turned = float("inf")  # when a slot last began with a request
        self.promise = candidate.weight
        self.log, self.variance, self.heard, self.seen = 0.0, 1.0, 0.0, 0
        self.seconds = seconds
        self.running: dict[Lease, _Flight] = {}
        self.queued: dict[Lease, _Flight] = {}
        self.waiting: float | None = None  # cost units before a further request starts, if known

    def behind(self, work: float) -> float:
        """Units of cost to be done before a further request starts, when all slots are taken.

        `work` of n requests on c slots takes about work / n · (n + 1 - c) / c. A request larger
        than all the rest blocks its own slot only: it is set aside with its slot.
        """
        costs = [lease.cost for lease in self.running]
        count, slots = len(costs) + len(self.queued), self.slots
        if count < slots:
            return 0.0
        set_aside = 0
        if 1 < slots <= 16:
            costs += [lease.cost for lease in self.queued]
            costs.sort(reverse=True)
            while set_aside < slots - 1 and costs[set_aside] * (slots - set_aside) > work:
                work -= costs[set_aside]
                set_aside += 1
        return max(0.0, work) / (count - set_aside) * (count + 1 - slots) / (slots - set_aside)


class Predictive:
    """Configured weights, where they differ, promise relative speeds: they are the first estimate,
    and no replica is believed more than twice as fast as promised. Equal weights promise nothing.
    Costs are in a unit that means the same on all replicas (rows, tokens), not in their seconds."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._random = (rng or random.Random()).random
        self._least_work = WeightedLeastConnections(rng)
        self._replicas: dict[str, _Replica] = {}
        self._shape = Shape()
        self._noise = 0.5  # variance of the logarithm of service time around its prediction
        self._center = 0.0  # logarithm of seconds per unit of cost on a replica of weight 1
        self._wait_part, self._wait_seen, self._wait_meant = 1.0, 5.0, 5.0
        self._error = 0.0
        self._completions = 0

    @property
    def sure(self) -> bool:
        return self._completions >= _KNOWN and self._error < _UNSURE

    def choose(
        self, candidates: Sequence[C], request: RoutingKey, now: float, *, cost: float = 1.0
    ) -> C | None:
        if self._completions < _KNOWN or self._error >= _UNSURE:
            return self._least_work.choose(candidates, request, now, cost=cost)
        fixed, per_cost, batch, per_in, per_out = self._shape.coefficients
        base = fixed + per_cost * cost + per_in * request.tokens_in + per_out * request.tokens_out
        # Of equally free replicas the one with fewer in flight, to leave room evenly.
        batch = max(batch, _EVEN * per_cost) * cost
        wait = self._wait_part * per_cost
        replicas = self._replicas
        best, lowest, ties = None, float("inf"), 1
        for candidate in candidates:
            if candidate.ramping:
                candidate.refresh(now)
            share = candidate.share
            if share <= 0.0:
                continue
            replica = replicas.get(candidate.name) or self._meet(candidate)
            if candidate.weight != replica.promise:
                replica.promise = candidate.weight
                self._settle(now)
            count, slots = candidate.in_flight, replica.slots
            score = base + batch * count / slots
            if count >= slots:
                waiting = replica.waiting
                if waiting is None:
                    waiting = replica.waiting = replica.behind(candidate.work)
                waits = wait * waiting
                stalled = _STALL * (now - replica.turned) / replica.seconds
                score += waits if waits > stalled else stalled
            score *= replica.seconds
            if count and replica.fresh < _WARM and share != candidate.weight:  # slow start
                score *= candidate.weight / share
            if score < lowest:
                best, lowest, ties = candidate, score, 1
            elif score == lowest:
                ties += 1
                if self._random() * ties < 1.0:
                    best = candidate
        return best

    # -------------------------------------------------------------------------------- learning

    def sent(self, lease: Lease, request: RoutingKey, now: float) -> None:
        load = lease.load
        if load is None:
            return
        replica = self._replicas.get(lease.replica) or self._meet(load)
        if replica.generation != lease.generation or replica.declared != load.slots:
            replica.generation, replica.declared = lease.generation, load.slots
            replica.slots, replica.more = max(1, load.slots), 0.0
            replica.running, replica.queued = {}, {}
        if replica.started != load.started:  # another process, perhaps, or cold
            replica.started, replica.fresh = load.started, 0
            replica.variance = max(replica.variance, self._noise)
        others = lease.met_in_flight
        features = Features(
            1.0,
            lease.cost,
            lease.cost * others / replica.slots,
            float(request.tokens_in),
            float(request.tokens_out),
        )
        shape = self._shape.value(features)
        wait = 0.0
        if others >= replica.slots:
            wait = replica.behind(lease.met_work) * self._shape.coefficients[1]
        predicted = (shape + self._wait_part * wait) * replica.seconds
        if len(replica.running) < replica.slots:
            replica.running[lease] = _Flight(features, shape, wait, predicted, now)
            replica.turned = now
        else:
            replica.queued[lease] = _Flight(features, shape, wait, predicted, None)
        replica.waiting = None

    def ended(self, lease: Lease, request: RoutingKey, now: float, *, ok: bool) -> None:
        replica = self._replicas.get(lease.replica)
        if replica is None:
            return
        replica.waiting = None
        flight = replica.running.pop(lease, None)
        if flight is None:
            flight = replica.queued.pop(lease, None)
            if flight is None:
                return
            if ok:  # it was served before its turn: there are more slots than said
                replica.more = min(replica.more + 1.0, 4096.0)
        else:
            replica.more *= _KEPT
        replica.slots = max(1, replica.declared) + int(replica.more)
        if replica.queued and len(replica.running) < replica.slots:
            first = next(iter(replica.queued))
            begun = replica.running[first] = replica.queued.pop(first)
            begun.began = replica.turned = now
        if ok and flight.shape > 0.0 and now > lease.taken:
            self._learn(replica, lease, flight, now)

    def _learn(self, replica: _Replica, lease: Lease, flight: _Flight, now: float) -> None:
        service = now - (flight.began if flight.began is not None else lease.taken)
        found = log(max(service, 1e-9)) - log(max(flight.shape, 1e-12))
        self._completions += 1
        if replica.seen:
            variance = replica.variance + _DRIFT * min(now - replica.heard, 10.0)
            error = found - replica.log
            gain = variance / (variance + self._noise)
            replica.log += gain * error
            replica.variance = variance * (1.0 - gain)
            self._noise += 0.01 * (min(error * error, 4.0) - self._noise)
        else:
            replica.log, replica.variance = found, self._noise
        replica.seen, replica.heard = replica.seen + 1, now
        replica.fresh += lease.taken >= replica.started
        count = self._completions
        if count >= _KNOWN:
            off = abs(log((now - lease.taken) / flight.predicted)) if flight.predicted > 0 else 0.0
            self._error += 0.02 * (off - self._error)
            self._learn_wait(replica, lease, flight, now)
            if count < 256 or count % 4 == 0:
                most = _CLIP * flight.shape
                self._shape.observe(flight.features, min(service / replica.seconds, most))
        if count <= _KNOWN or count % max(4, len(self._replicas) // 2) == 0:
            self._settle(now)

    def _learn_wait(self, replica: _Replica, lease: Lease, flight: _Flight, now: float) -> None:
        """The part of the predicted wait that requests really wait."""
        if flight.wait > 0.0:
            scale = max(flight.shape, flight.wait)
            met, meant = now - lease.taken - flight.shape * replica.seconds, flight.wait
            met = min(met / replica.seconds, _CLIP * scale)
            self._wait_seen = 0.998 * self._wait_seen + met * meant / scale**2
            self._wait_meant = 0.998 * self._wait_meant + meant * meant / scale**2
            self._wait_part = min(max(self._wait_seen / self._wait_meant, 0.0), 2.0)

    def _settle(self, now: float) -> None:
        """Every replica's `seconds`, from its estimate, its promise and the doubt about both."""
        known = [r for r in self._replicas.values() if r.seen and r.promise > 0.0]
        if not known:
            return
        center = self._center = median(r.log + log(r.promise) for r in known)
        promised = len({r.promise for r in known}) > 1
        for replica in self._replicas.values():
            if replica.promise <= 0.0:
                continue
            off = 0.0
            if replica.seen:
                doubt = _DOUBT * sqrt(replica.variance + _DRIFT * max(0.0, now - replica.heard))
                off = replica.log + log(replica.promise) - center
                off = max(0.0, off - doubt) if off > 0.0 else min(0.0, off + doubt)
                if promised:
                    off = max(off, -_BETTER)
            replica.seconds = exp(center + off) / replica.promise

    def _meet(self, candidate: Candidate) -> _Replica:
        if len(self._replicas) >= 1024:  # names come from the configuration; renamed ones go here
            self._replicas.clear()
        seconds = exp(self._center) / max(candidate.weight, 1e-9)
        replica = self._replicas[candidate.name] = _Replica(candidate, seconds)
        return replica
