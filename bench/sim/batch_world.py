"""The batching simulator's world: requests that come, replicas that run batches, one rule between.

Owns simulated replicas and the count of what was served in time; decides nothing. Each replica runs
one batch at a time. Invariant: every request ends once: in time, late, dropped or refused.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, log, sqrt
from typing import NamedTuple, Protocol

from bench.sim.batch_workload import Cell
from bench.sim.engine import Engine, Event, stream


class Request:
    """What waits: the production code's `Item`."""

    __slots__ = ("arrived", "deadline", "key", "priority", "rows")

    def __init__(self, arrived: float, deadline: float) -> None:
        self.arrived, self.deadline = arrived, deadline
        self.rows, self.priority, self.key = 1, 0, ""


class Decision(NamedTuple):
    """`batch` starts now, on a free replica; `dropped` requests are given up; ask again at
    `wake`."""

    batch: list[Request]
    dropped: int = 0
    wake: float = inf


class Rule(Protocol):
    """What decides. `free` replicas are idle when it is asked."""

    def arrive(self, request: Request, now: float) -> bool: ...  # False: refused
    def decide(self, now: float, free: int) -> Decision: ...
    def ended(self, batch: list[Request], seconds: float, now: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """Counts are of requests that came after the warm-up. `latency_p50`, `latency_p99`: seconds, of
    what was in time. `efficiency`: mean throughput while busy over that of b*."""

    offered: int
    in_time: int
    late: int
    dropped: int
    latency_p50: float
    latency_p99: float
    mean_batch: float
    efficiency: float

    @property
    def goodput(self) -> float:
        return self.in_time / self.offered


class World:
    """Rules and curves start knowing nothing: what comes before `warm_s` is served, not counted."""

    def __init__(
        self, cell: Cell, rule: Rule, times: Sequence[float], seed: int, warm_s: float = 0.0
    ) -> None:
        self._engine = Engine()
        self._cell, self._rule, self._times = cell, rule, times
        self._noise = stream(seed, "service")
        self._warm_s = warm_s
        self._free = cell.replicas
        self._wake: Event | None = None
        self._latencies: list[float] = []
        self._late = self._dropped = self._ran = self._batches = 0
        self._busy_s = 0.0

    def run(self) -> Outcome:
        engine = self._engine
        for when in self._times:
            engine.run(when)
            self._arrive(when)
        engine.run()
        ended = self._ran + self._dropped
        assert ended == len(self._times), "a request was lost or doubled"
        offered = len(self._times) - bisect_left(self._times, self._warm_s)
        ordered = sorted(self._latencies) or [0.0]
        speed = self._ran / self._busy_s if self._busy_s else 0.0
        return Outcome(
            offered=offered,
            in_time=len(self._latencies),
            late=self._late,
            dropped=offered - len(self._latencies) - self._late,
            latency_p50=ordered[len(ordered) // 2],
            latency_p99=ordered[int(len(ordered) * 0.99)],
            mean_batch=self._ran / max(self._batches, 1),
            efficiency=speed * self._cell.replicas / self._cell.capacity,
        )

    def _arrive(self, now: float) -> None:
        if not self._rule.arrive(Request(now, now + self._cell.slo_s), now):
            self._dropped += 1
        if self._free:
            self._fill()

    def _fill(self) -> None:
        """Start batches until the rule has none."""
        engine, rule = self._engine, self._rule
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        while self._free:
            decision = rule.decide(engine.now, self._free)
            self._dropped += decision.dropped
            if not decision.batch:
                if decision.wake < inf:
                    self._wake = engine.at(decision.wake, self._woken)
                return
            seconds = self._seconds(len(decision.batch))
            self._free -= 1
            self._batches += 1
            self._ran += len(decision.batch)
            self._busy_s += seconds
            engine.after(seconds, self._end, decision.batch, seconds)

    def _woken(self) -> None:
        self._wake = None
        self._fill()

    def _end(self, batch: list[Request], seconds: float) -> None:
        now, warm_s = self._engine.now, self._warm_s
        self._free += 1
        for request in batch:
            arrived = request.arrived
            if arrived < warm_s:
                continue
            if now <= request.deadline + 1e-9:
                self._latencies.append(now - arrived)
            else:
                self._late += 1
        self._rule.ended(batch, seconds, now)
        self._fill()

    def _seconds(self, size: int) -> float:
        seconds = self._cell.curve[size]
        if self._cell.noise:
            spread = sqrt(log(1.0 + self._cell.noise**2))
            seconds *= self._noise.lognormvariate(-spread * spread / 2.0, spread)
        return seconds
