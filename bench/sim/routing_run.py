"""One run of the routing simulator: a scenario, a policy, a load and a seed, to its figures."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bench.sim.engine import Engine, stream
from bench.sim.routing_guards import Breakers, EnvoyOutliers
from bench.sim.routing_rivals import (
    P2C,
    ChwblRing,
    LvsWlc,
    Maglev,
    Omniscient,
    PeakEwma,
    Prequal,
)
from bench.sim.routing_scenarios import SLOTS, Row, Scenario, Stage
from bench.sim.routing_world import Gateway, Guard, Job, Server
from gateway.policy.load import ReplicaLoad
from gateway.policy.routing import Router, make_router
from gateway.policy.slowstart import SlowStart

RIVALS: Mapping[str, Callable[[random.Random, Engine, Mapping[str, Server]], Router]] = {
    "prequal": Prequal,
    "p2c": lambda rng, engine, servers: P2C(rng),
    "peak-ewma": lambda rng, engine, servers: PeakEwma(rng),
    "lvs-wlc": lambda rng, engine, servers: LvsWlc(),
    "chwbl": lambda rng, engine, servers: ChwblRing(),
    "maglev": lambda rng, engine, servers: Maglev(),
}
FLOOR = "omniscient"


@dataclass(slots=True)
class Figures:
    """Latencies in seconds, a failed request counted as its timeout. `spread`: the most work done
    by a replica over its fair part. `detected`: seconds until a sick replica got next to
    nothing. `false_ejections`: breakers opened on replicas that were well."""

    latencies: list[float] = field(default_factory=list)
    failed: int = 0
    attempts: int = 0
    requests: int = 0
    hits: int = 0
    lookups: int = 0
    spread: float = 0.0
    detected: float | None = None
    false_ejections: int = 0

    def quantile(self, share: float) -> float:
        ranked = sorted(self.latencies)
        return ranked[min(int(share * len(ranked)), len(ranked) - 1)]


def run(scenario: Scenario, policy: str, load: float, requests: int, seed: int) -> Figures:
    """Deterministic in its arguments."""
    engine, figures = Engine(), Figures()
    servers = scenario.servers(engine, seed)
    trace = scenario.trace(load, requests, seed)
    counted_from = trace[int(scenario.warm_up * requests)].arrival
    newest: list[float] = [0.0]

    def report(job: Job, latency: float, ok: bool) -> None:
        if job.arrived < counted_from:
            return
        figures.requests += 1
        figures.attempts += job.attempt
        if not ok:
            figures.failed += 1
            latency = max(latency, scenario.timeout or 0.0)
        figures.latencies.append(latency)

    ours = policy not in RIVALS and policy != FLOOR
    views: list[list[ReplicaLoad]] = []
    gateways: list[Gateway] = []
    guards: list[Guard] = []
    for index in range(scenario.gateways):
        rng = stream(seed, scenario.name, policy, index)
        slow_start = SlowStart() if ours else None
        loads = [
            ReplicaLoad(name, weight, SLOTS, slow_start=slow_start)
            for name, weight in zip(scenario.names, scenario.configured, strict=True)
        ]
        router = _router(policy, rng, engine, servers, lambda: newest[0])
        guard: Guard | None = None
        if scenario.guarded:
            guard = Breakers(loads, rng) if ours else EnvoyOutliers(loads)
            guards.append(guard)
        views.append(loads)
        gateways.append(
            Gateway(engine, servers, loads, router, report, guard=guard, timeout=scenario.timeout)
        )
    sick: list[tuple[str, float, float]] = []
    if scenario.events is not None:
        rng = stream(seed, scenario.name, "events")
        scenario.events(Stage(engine, servers, views, trace[-1].arrival, rng, sick))
    _feed(engine, trace, gateways, newest)
    engine.run()
    _account(figures, scenario, servers, gateways, guards, sick)
    return figures


def _router(
    policy: str,
    rng: random.Random,
    engine: Engine,
    servers: Mapping[str, Server],
    size: Callable[[], float],
) -> Router:
    if policy == FLOOR:
        return Omniscient(servers, size)
    maker = RIVALS.get(policy)
    return maker(rng, engine, servers) if maker is not None else make_router(policy, rng)


def _feed(
    engine: Engine, trace: Sequence[Row], gateways: Sequence[Gateway], newest: list[float]
) -> None:
    rows = iter(trace)

    def arrive(row: Row) -> None:
        following = next(rows, None)
        if following is not None:
            engine.at(following.arrival, arrive, following)
        newest[0] = row.size
        gateways[row.gateway].arrive(Job(row.arrival, row.size, row.cost, row.key, row.warm))

    first = next(rows)
    engine.at(first.arrival, arrive, first)


def _account(
    figures: Figures,
    scenario: Scenario,
    servers: Mapping[str, Server],
    gateways: Sequence[Gateway],
    guards: Sequence[Guard],
    sick: Sequence[tuple[str, float, float]],
) -> None:
    figures.hits = sum(server.hits for server in servers.values())
    figures.lookups = sum(server.lookups for server in servers.values())
    total, speeds = sum(s.done_work for s in servers.values()), sum(scenario.speeds)
    figures.spread = max(
        server.done_work / total * speeds / speed
        for server, speed in zip(servers.values(), scenario.speeds, strict=True)
    )
    ill = {name for name, _, _ in sick}
    figures.false_ejections = sum(
        count for guard in guards for name, count in guard.opened().items() if name not in ill
    )
    for name, start, end in sick:
        times = sorted(t for g in gateways for t in g.sent[name] if start <= t < end)
        figures.detected = _quiet_from(times, start, end) - start


def _quiet_from(times: Sequence[float], start: float, end: float) -> float:
    """The first moment after which a quarter of a second has at most two requests."""
    moments = [start, *times]
    for index, moment in enumerate(moments):
        if index + 3 >= len(moments) or moments[index + 3] > moment + 0.25:
            return moment
    return end
