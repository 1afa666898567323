"""The routing simulator's world: servers with slots and speeds, gateways with their own views.

Owns simulated queues, caches and faults; decides nothing about routing. A server is first come,
first served on `slots` parallel slots; sizes are seconds on a slot of speed 1. Gateways share
servers but no state. Invariant: every job ends once, answered or failed.
"""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from heapq import heapreplace
from typing import Protocol

from bench.sim.engine import Engine, Event
from gateway.policy.breaker import Outcome
from gateway.policy.load import Lease, ReplicaLoad
from gateway.policy.retry import Failure
from gateway.policy.routing import Router, RoutingKey


class Job:
    """One request. `size` is known to the world alone, `cost` is what a gateway believes.
    `warm`: what a server's cache may hold of it, each in turn saving as much."""

    __slots__ = (
        "arrived",
        "attempt",
        "attempts",
        "began",
        "cost",
        "event",
        "failed",
        "gateway",
        "key",
        "lease",
        "left",
        "permit",
        "rif",
        "sent",
        "server",
        "size",
        "timer",
        "warm",
    )

    def __init__(
        self, arrived: float, size: float, cost: float, key: RoutingKey, warm: tuple[str, ...] = ()
    ) -> None:
        self.arrived, self.size, self.cost, self.key = arrived, size, cost, key
        self.warm = warm
        self.left = self.began = self.sent = 0.0
        self.attempt = self.rif = 0
        self.failed = False
        self.event: Event | None = None
        self.timer: Event | None = None
        self.server: Server
        self.gateway: Gateway
        self.lease: Lease
        self.attempts: Retries | None = None
        self.permit: Verdict | None = None


class Server:
    """`cache`: how much it keeps warm, least recently used last; a request of which nothing is
    warm costs `miss` times its size."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        *,
        slots: int = 2,
        speed: float = 1.0,
        cache: int = 0,
        miss: float = 1.0,
        rng: random.Random,
    ) -> None:
        self.engine, self.name, self.slots, self.speed = engine, name, slots, speed
        self.queue: deque[Job] = deque()
        self.running: dict[Job, None] = {}
        self.up, self.error_rate = True, 0.0
        self._cache_size, self._miss = cache, miss
        self._cache: OrderedDict[str, None] = OrderedDict()
        self._rng = rng
        self.hits = self.lookups = 0
        self.done_work = 0.0
        self.by_rif: dict[int, float] = {}

    @property
    def rif(self) -> int:
        return len(self.queue) + len(self.running)

    def submit(self, job: Job) -> bool:
        """False: the connection is refused."""
        if not self.up:
            return False
        job.server, job.rif = self, len(self.queue) + len(self.running)
        if self.error_rate and self._rng.random() < self.error_rate:
            job.event = self.engine.after(0.001, self._err, job)  # fails fast, takes no slot
            self.running[job] = None
            job.left, job.began = float("inf"), self.engine.now
            return True
        if len(self.running) < self.slots:
            self._start(job)
        else:
            self.queue.append(job)
        return True

    def ahead(self) -> float:
        """Seconds until a job that came now would start, were all sizes known."""
        if len(self.running) < self.slots:
            return 0.0
        now, speed = self.engine.now, self.speed
        ends = sorted(job.left - (now - job.began) * speed for job in self.running)
        for job in self.queue:
            heapreplace(ends, max(ends[0], 0.0) + job.size)
        return max(ends[0], 0.0) / speed

    def latency_at(self, rif: int) -> float:
        """Prequal's estimate: recent latency of requests that met about so many in flight."""
        by_rif = self.by_rif
        if not by_rif:
            return 0.0
        found = by_rif.get(rif)
        return found if found is not None else by_rif[min(by_rif, key=lambda r: abs(r - rif))]

    def set_speed(self, speed: float) -> None:
        now = self.engine.now
        for job in self.running:
            if job.event is not None and job.left != float("inf"):
                job.left -= (now - job.began) * self.speed
                job.began = now
                job.event.cancel()
                job.event = self.engine.after(max(job.left, 0.0) / speed, self._end, job)
        self.speed = speed

    def crash(self) -> None:
        """Everything held is lost and the caches are cold."""
        self.up = False
        lost = [*self.running, *self.queue]
        for job in self.running:
            if job.event is not None:
                job.event.cancel()
        self.running.clear()
        self.queue.clear()
        self._cache.clear()
        self.by_rif.clear()
        for job in lost:
            job.gateway.failed(job, Failure.LOST)

    def restart(self) -> None:
        self.up = True

    def abandon(self, job: Job) -> None:
        """The gateway has given the job up. A job that runs still runs to its end."""
        if job not in self.running:
            self.queue.remove(job)

    def _start(self, job: Job) -> None:
        left = job.size
        if job.warm:
            cache, found = self._cache, 0
            for item in job.warm:
                if item in cache:
                    cache.move_to_end(item)
                    found += 1
                else:
                    cache[item] = None
            while len(cache) > self._cache_size:
                cache.popitem(last=False)
            self.hits += found
            self.lookups += len(job.warm)
            left *= self._miss + (1.0 - self._miss) * found / len(job.warm)
        now = self.engine.now
        job.left, job.began = left, now
        self.running[job] = None
        job.event = self.engine.at(now + left / self.speed, self._end, job)

    def _end(self, job: Job) -> None:
        del self.running[job]
        self.done_work += job.size
        latency = self.engine.now - job.sent
        before = self.by_rif.get(job.rif)
        self.by_rif[job.rif] = latency if before is None else before + 0.3 * (latency - before)
        if self.queue and len(self.running) < self.slots:
            self._start(self.queue.popleft())
        job.gateway.answered(job)

    def _err(self, job: Job) -> None:
        del self.running[job]
        job.gateway.failed(job, Failure.ERROR)


class Retries(Protocol):
    """What a gateway asks about a job's next attempt; production's `Attempts` is one."""

    tried: list[str]

    def failed(self, replica: str, why: Failure, now: float, others: int) -> float | None: ...


class Verdict(Protocol):
    def record(self, now: float, outcome: Outcome) -> object: ...


class Guard(Protocol):
    """A gateway's breakers and retry rules."""

    def usable(self, loads: Sequence[ReplicaLoad], now: float) -> Sequence[ReplicaLoad]: ...
    def permit(self, load: ReplicaLoad, now: float) -> Verdict | None: ...
    def attempts(self, now: float, deadline: float) -> Retries: ...
    def opened(self) -> Mapping[str, int]: ...


class Gateway:
    """One worker: its own loads, router and guard. `report` gets (job, latency, ok)."""

    def __init__(
        self,
        engine: Engine,
        servers: dict[str, Server],
        loads: Sequence[ReplicaLoad],
        router: Router,
        report: Callable[[Job, float, bool], None],
        *,
        guard: Guard | None = None,
        timeout: float | None = None,
    ) -> None:
        self.engine, self.servers, self.loads, self.router = engine, servers, loads, router
        self.guard, self._timeout, self._report = guard, timeout, report
        self.sent: dict[str, list[float]] = {name: [] for name in servers}

    def arrive(self, job: Job) -> None:
        job.gateway = self
        if self.guard is not None:
            deadline = job.arrived + (self._timeout or 10.0)
            job.attempts = self.guard.attempts(job.arrived, deadline)
        self._route(job)

    def _route(self, job: Job) -> None:
        now, guard = self.engine.now, self.guard
        able: Sequence[ReplicaLoad] = self.loads
        if guard is not None:
            able = guard.usable([load for load in able if not load.drained], now)
            if job.attempts is not None and job.attempts.tried:
                tried = job.attempts.tried
                fresh = [load for load in able if load.name not in tried]
                able = fresh or [load for load in able if load.name != tried[-1]] or able
        load = self.router.choose(able, job.key, now, cost=job.cost)
        if load is None:
            self._report(job, now - job.arrived, False)
            return
        if guard is not None:
            job.permit = guard.permit(load, now)
        job.attempt += 1
        job.sent = now
        job.lease = load.take(job.cost, now)
        self.router.sent(job.lease, job.key, now)
        self.sent[load.name].append(now)
        if self._timeout is not None:
            job.timer = self.engine.after(self._timeout, self._time_out, job)
        if not self.servers[load.name].submit(job):
            self.engine.after(0.0005, self.failed, job, Failure.REFUSED)

    def answered(self, job: Job) -> None:
        now = self.engine.now
        if job.failed:
            return  # the server finished what the gateway had given up
        if job.timer is not None:
            job.timer.cancel()
        job.lease.release(now)
        self.router.ended(job.lease, job.key, now, ok=True)
        if job.permit is not None:
            job.permit.record(now, Outcome.SUCCESS)
        self._report(job, now - job.arrived, True)

    def failed(self, job: Job, why: Failure) -> None:
        now = self.engine.now
        if job.failed:
            return
        if job.timer is not None:
            job.timer.cancel()
        replica = job.lease.replica
        job.lease.release(now)
        self.router.ended(job.lease, job.key, now, ok=False)
        if job.permit is not None:
            job.permit.record(now, Outcome.FAILURE)
        wait = None
        if self.guard is not None and job.attempts is not None:
            wait = job.attempts.failed(replica, why, now, len(self.loads) - 1)
        if wait is None:
            self._report(job, now - job.arrived, False)
        elif wait == 0.0:
            self._route(job)
        else:
            self.engine.after(wait, self._route, job)

    def _time_out(self, job: Job) -> None:
        job.timer = None
        job.server.abandon(job)
        self.failed(job, Failure.TIMEOUT)
        job.failed = True
