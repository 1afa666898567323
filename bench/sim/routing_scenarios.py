"""The routing simulator's scenarios: who serves, what arrives, what goes wrong and when.

Owns the traces: all policies of a scenario see the same arrivals, sizes and faults, so that their
difference is theirs alone. Sizes are in seconds on a slot of speed 1, 10 ms in the mean. Replicas
hold two slots each; a load of 1 is what they all do together, faults included.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import exp
from typing import NamedTuple

from bench.sim.engine import Engine, stream
from bench.sim.routing_world import Server
from gateway.policy.load import ReplicaLoad
from gateway.policy.routing import RoutingKey

MEAN = 0.010
SLOTS = 2


class Row(NamedTuple):
    """One request of a trace; `cost` is what the gateways believe of its size."""

    arrival: float
    size: float
    cost: float
    key: RoutingKey
    gateway: int
    warm: tuple[str, ...]


class Stage(NamedTuple):
    """What a scenario's events act on. `loads`: every gateway's views, for announced drains."""

    engine: Engine
    servers: dict[str, Server]
    loads: Sequence[Sequence[ReplicaLoad]]
    seconds: float
    rng: random.Random
    sick: list[tuple[str, float, float]]  # faults that a breaker should see: server, from, until


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """`weights` as configured; None: what the speeds say. `noise`: sigma of the logarithm of the
    believed cost over the size; None: sizes are not known. `left`: the part of full speed that the
    events leave, in the mean. `guarded`: breakers and retries are on, `timeout` per attempt.
    `warm_up`: the part of the requests that does not count: nobody knows anything at the start,
    and where there are caches to fill, requests come at a third of the rate then. `repeats`: seeds
    in a quick run; more where the p99 is noisy or the contestants close."""

    name: str
    says: str
    speeds: tuple[float, ...]
    loads: tuple[float, ...]
    size: Callable[[random.Random], float]
    weights: tuple[float, ...] | None = None
    gateways: int = 1
    noise: float | None = None
    sessions: int = 0
    cache: int = 0
    miss: float = 1.0
    events: Callable[[Stage], None] | None = None
    guarded: bool = False
    timeout: float | None = None
    left: float = 1.0
    warm_up: float = 0.1
    repeats: int = 1
    keys: Callable[[int], tuple[RoutingKey, tuple[str, ...]]] = lambda rank: named(rank)

    @property
    def names(self) -> list[str]:
        return [f"replica-{index}" for index in range(len(self.speeds))]

    @property
    def configured(self) -> tuple[float, ...]:
        return self.weights or self.speeds

    def servers(self, engine: Engine, seed: int) -> dict[str, Server]:
        return {
            name: Server(
                engine,
                name,
                slots=SLOTS,
                speed=speed,
                cache=self.cache,
                miss=self.miss,
                rng=stream(seed, self.name, name),
            )
            for name, speed in zip(self.names, self.speeds, strict=True)
        }

    def trace(self, load: float, requests: int, seed: int) -> list[Row]:
        gaps, sizes = stream(seed, self.name, "gaps"), stream(seed, self.name, "sizes")
        guesses, keys = stream(seed, self.name, "guesses"), stream(seed, self.name, "keys")
        homes = stream(seed, self.name, "gateways")
        rate = load * sum(self.speeds) * SLOTS * self.left / MEAN
        popularity = list(accumulate(1.0 / (rank + 1) for rank in range(self.sessions)))
        now, rows = 0.0, []
        quiet = int(0.8 * self.warm_up * requests) if self.cache else 0
        for index in range(requests):
            now += gaps.expovariate(rate / 3.0 if index < quiet else rate)
            size = cost = self.size(sizes) * MEAN
            cost = MEAN if self.noise is None else cost * exp(guesses.gauss(0.0, self.noise))
            key, warm = _NOBODY
            if popularity:
                key, warm = self.keys(bisect_left(popularity, keys.random() * popularity[-1]))
            rows.append(Row(now, size, cost, key, homes.randrange(self.gateways), warm))
        return rows


_NOBODY: tuple[RoutingKey, tuple[str, ...]] = (RoutingKey(), ())


def named(rank: int) -> tuple[RoutingKey, tuple[str, ...]]:
    """The client names its session."""
    name = f"session-{rank}"
    return RoutingKey(session=name), (name,)


def prompted(rank: int) -> tuple[RoutingKey, tuple[str, ...]]:
    """A conversation that only its prompt tells of: 2 KiB of one of 20 system prompts (blocks of
    256 bytes), then as much of its own."""
    system = rank % 20
    blocks = (*(system * 100 + n for n in range(8)), *(10**6 + rank * 100 + n for n in range(4)))
    return RoutingKey(prefix=blocks), (f"system-{system}", f"conversation-{rank}")


def lognormal(sigma: float) -> Callable[[random.Random], float]:
    """Of mean 1."""
    return lambda rng: exp(rng.gauss(-sigma * sigma / 2, sigma))


def pareto(alpha: float, most: float) -> Callable[[random.Random], float]:
    """Of mean 1, from its scale to `most` times it."""
    tail = most**-alpha
    mean = alpha / (alpha - 1.0) * (1.0 - most ** (1.0 - alpha)) / (1.0 - tail)
    return lambda rng: float((1.0 - rng.random() * (1.0 - tail)) ** (-1.0 / alpha) / mean)


def antagonist(stage: Stage) -> None:
    """A square wave: a quarter of the replicas at a third of their speed, others every 2 s."""
    engine, names = stage.engine, list(stage.servers)

    def turn(slow: Sequence[str]) -> None:
        for name in slow:
            stage.servers[name].set_speed(1.0)
        chosen = stage.rng.sample(names, len(names) // 4)
        for name in chosen:
            stage.servers[name].set_speed(1.0 / 3.0)
        if engine.now + 2.0 < stage.seconds:
            engine.after(2.0, turn, chosen)

    turn(())


def crash(stage: Stage) -> None:
    """One is killed at 30 % of the time and back, cold, at 60 %."""
    name = stage.rng.choice(list(stage.servers))
    start, end = 0.3 * stage.seconds, 0.6 * stage.seconds
    stage.sick.append((name, start, end))
    stage.engine.at(start, stage.servers[name].crash)
    stage.engine.at(end, _back_cold, stage, name, 1.0)


def flap(stage: Stage) -> None:
    """One goes up and down all the time, half a second each."""
    name = stage.rng.choice(list(stage.servers))
    server, at = stage.servers[name], 0.1 * stage.seconds
    stage.sick.append((name, at, stage.seconds))
    while at < stage.seconds:
        stage.engine.at(at, server.crash)
        stage.engine.at(at + 0.5, server.restart)
        at += 1.0


def gray_slow(stage: Stage) -> None:
    """One runs at a twentieth of its speed from 30 to 60 % of the time, and answers all it gets."""
    name = stage.rng.choice(list(stage.servers))
    server, start, end = stage.servers[name], 0.3 * stage.seconds, 0.6 * stage.seconds
    stage.sick.append((name, start, end))
    stage.engine.at(start, server.set_speed, 0.05)
    stage.engine.at(end, server.set_speed, 1.0)


def gray_errors(stage: Stage) -> None:
    """One fails 70 % of its requests, at once, from 30 to 60 % of the time."""
    name = stage.rng.choice(list(stage.servers))
    server, start, end = stage.servers[name], 0.3 * stage.seconds, 0.6 * stage.seconds
    stage.sick.append((name, start, end))
    stage.engine.at(start, setattr, server, "error_rate", 0.7)
    stage.engine.at(end, setattr, server, "error_rate", 0.0)


def reload(stage: Stage) -> None:
    """One after the other is drained for 0.3 s, away for 0.5 s, and back, cold, for 1 s."""
    step = 0.9 * stage.seconds / len(stage.servers)
    for index, name in enumerate(stage.servers):
        at = 0.05 * stage.seconds + index * step
        for loads in stage.loads:
            stage.engine.at(at, loads[index].drain, at)
            stage.engine.at(at + 0.8, loads[index].undrain, at + 0.8)
        stage.engine.at(at + 0.3, stage.servers[name].crash)
        stage.engine.at(at + 0.8, _back_cold, stage, name, 1.0)


def _back_cold(stage: Stage, name: str, seconds: float) -> None:
    server = stage.servers[name]
    server.restart()
    server.set_speed(0.3)
    stage.engine.after(seconds, server.set_speed, 1.0)


SMOOTH = lognormal(0.7)
HEAVY = pareto(1.5, 1000.0)
EIGHT = (1.0,) * 8
MIXED = (0.5, 0.5, 1.0, 1.0, 1.0, 2.0, 2.0, 4.0)
LOADS = (0.5, 0.7, 0.85)


def _stateless() -> list[Scenario]:
    return [
        Scenario(
            name="equal",
            says="8 equal replicas",
            speeds=EIGHT,
            loads=(0.6, 0.8, 0.9),
            size=SMOOTH,
            repeats=3,
        ),
        Scenario(
            name="heterogeneous",
            says="8 replicas, speeds 1:2:4:8, weights say so",
            speeds=MIXED,
            loads=LOADS,
            size=SMOOTH,
        ),
        Scenario(
            name="unweighted",
            says="the same, all weights 1",
            speeds=MIXED,
            weights=EIGHT,
            loads=LOADS,
            size=SMOOTH,
        ),
        Scenario(
            name="antagonist",
            says="a quarter of the replicas at 1/3 speed, others every 2 s",
            speeds=EIGHT,
            loads=LOADS,
            size=SMOOTH,
            events=antagonist,
            left=5 / 6,
        ),
        Scenario(
            name="tails",
            says="Pareto 1.5 sizes, known within 30 %",
            speeds=EIGHT,
            loads=LOADS,
            size=HEAVY,
            noise=0.3,
        ),
        Scenario(
            name="blind-tails",
            says="Pareto 1.5 sizes, not known",
            speeds=EIGHT,
            loads=LOADS,
            size=HEAVY,
            repeats=3,
        ),
    ]


def _stale() -> list[Scenario]:
    return [
        Scenario(
            name=f"gateways-{count}",
            says=f"heterogeneous, {count} gateways that see only their own requests",
            speeds=MIXED,
            loads=(0.7,),
            gateways=count,
            size=SMOOTH,
        )
        for count in (2, 4, 8)
    ]


def _faulty() -> list[Scenario]:
    faults = {
        "crash": (crash, "one of 8 is killed, and back cold"),
        "flap": (flap, "one of 8 up and down every half second"),
        "gray-slow": (gray_slow, "one of 8 at 1/20 speed for a while"),
        "gray-errors": (gray_errors, "one of 8 fails 70 % for a while, fast"),
        "reload": (reload, "a rolling restart: drained, away, back cold"),
    }
    return [
        Scenario(
            name=name,
            says=says,
            speeds=EIGHT,
            loads=(0.6,),
            size=SMOOTH,
            events=events,
            guarded=True,
            timeout=1.0,
        )
        for name, (events, says) in faults.items()
    ]


def _sessions() -> list[Scenario]:
    return [
        Scenario(
            name=name,
            says=f"2,000 Zipf sessions, 400 warm per replica, a miss costs 4x; gateways: {count}",
            speeds=EIGHT,
            loads=(0.4, 0.6),
            size=SMOOTH,
            sessions=2000,
            cache=400,
            miss=4.0,
            warm_up=0.4,
            gateways=count,
        )
        for name, count in (("sessions", 1), ("sessions-4", 4))
    ] + [
        Scenario(
            name="prefixes",
            says="2,000 Zipf conversations under 20 system prompts; a miss costs 2.5x or 4x",
            speeds=EIGHT,
            loads=(0.4, 0.6),
            size=SMOOTH,
            sessions=2000,
            keys=prompted,
            cache=400,
            miss=4.0,
            warm_up=0.4,
        )
    ]


SCENARIOS = (*_stateless(), *_stale(), *_faulty(), *_sessions())
