"""`small-tensor`: what serving costs when the model costs nothing (targets 1 and 2).

One 10→20→10 network, one JSON request a row, batches of up to 64: 64 keep-alive connections for
the rate, one for the latency. Ours with everything on, the floor and the rivals are up at the same
time on the same machine and are measured in turns; what the idle ones use meanwhile is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np
from rich.markup import escape

from bench.asking import check_mlp, json_body
from bench.contenders import JSON, Contender, launch_penstock, launch_tensor_floor, start_all
from bench.load.burst import Burst, Generator
from bench.models import mlp
from bench.record import Goal, Record
from bench.rivals import RIVALS
from bench.scenarios import Options, scenario
from bench.scenarios.small_tensor_detail import detail
from bench.series import MeasureFailed, Series, interleave
from bench.tables import figures_table

CONNECTIONS = 64
OURS, FLOOR = "penstock", "floor"


@scenario("small-tensor", "a tiny network, JSON, 64 connections and 1: what serving itself costs")
def run(options: Options) -> Record:
    rivals = tuple(RIVALS) if options.rivals is None else options.rivals
    names = [OURS, FLOOR, *rivals]
    with ExitStack() as stack:
        bench = _Bench(options, stack, rivals)
        rate, p50 = bench.measure()
        options.console.print(figures_table("small-tensor", names, [rate, p50]))
        bench.stop_others()
        more = detail(options, bench.ours) if rate.median(OURS) else {}
    return Record(
        scenario="small-tensor",
        metric=rate.metric,
        unit=rate.unit,
        higher_is_better=True,
        seed=options.seed,
        ours=rate.median(OURS),
        floor=rate.median(FLOOR),
        rivals={name: rate.figure(name) for name in rivals},
        goals=_goals(rate, p50, rivals),
        detail={
            "p50_1_connection_ms": {name: p50.figure(name) for name in names},
            "repetitions": {series.metric: series.to_json() for series in (rate, p50)},
            "cores": bench.cores,
            "generator": bench.generator.name,
            "generator_limits": bench.limits,
            **more,
        },
        versions=bench.versions,
    )


class _Bench:
    """The servers that are up, and the bursts on them. `cores`: processor seconds a second that
    the measured server used, and that all the idle ones used, at the last repetition."""

    def __init__(self, options: Options, stack: ExitStack, rivals: Sequence[str]) -> None:
        self._options = options
        self.generator = Generator()
        self.cores: dict[str, dict[str, float]] = {}
        self.limits: dict[str, str] = {}
        rng = np.random.default_rng(options.seed)
        self._body = json_body(rng.normal(size=(1, mlp.INPUTS)).astype(np.float32))
        launches: dict[str, Callable[[], Contender]] = {
            OURS: partial(launch_penstock, options.folder / OURS, models=("mlp", "image")),
            FLOOR: partial(launch_tensor_floor, options.folder / FLOOR),
        }
        for name in rivals:
            launches[name] = partial(RIVALS[name].launch, options.folder / name)
        with options.console.status("starting the servers ..."):
            self._contenders, failed = start_all(stack, launches)
        self._failures = {name: str(error) for name, error in failed.items()}
        for name, error in failed.items():
            if error.said:
                options.console.print(f"[yellow]{name} said:\n{escape(error.said)}")
        for name, contender in self._contenders.items():
            try:
                check_mlp(contender, options.seed)
            except MeasureFailed as error:
                self._failures[name] = str(error)

    @property
    def versions(self) -> dict[str, str]:
        return {
            name: version
            for contender in self._contenders.values()
            for name, version in contender.versions.items()
        }

    @property
    def ours(self) -> Contender:
        return self._contenders[OURS]

    def stop_others(self) -> None:
        for name, contender in self._contenders.items():
            if name != OURS:
                contender.server.stop()

    def measure(self) -> tuple[Series, Series]:
        quick = self._options.quick
        names = [name for name in self._contenders if name not in self._failures]
        rate = Series("rate, 64 connections", "req/s", higher_is_better=True)
        rate.failures |= self._failures
        with self._options.console.status("64 connections ..."):
            interleave(rate, names, 3 if quick else 7, self._rate)
        p50 = Series("p50, 1 connection", "ms", higher_is_better=False)
        p50.failures |= rate.failures
        with self._options.console.status("1 connection ..."):
            interleave(p50, names, 1 if quick else 5, self._p50)
        return rate, p50

    def _rate(self, name: str, repetition: int) -> float:
        quick = self._options.quick
        if repetition == 0 or not quick:
            self._burst(name, CONNECTIONS, 1)  # warm-up: caches, service curves, allocators
        before = {other: c.server.cpu_seconds() for other, c in self._contenders.items()}
        burst = self._burst(name, CONNECTIONS, 1 if quick else 4)
        used = {
            other: contender.server.cpu_seconds() - before[other]
            for other, contender in self._contenders.items()
        }
        self.cores[name] = {
            "server": used.pop(name) / burst.seconds,
            "idle_servers": sum(used.values()) / burst.seconds,
        }
        if burst.limit is not None:
            self.limits[name] = burst.limit
        return burst.rate

    def _p50(self, name: str, repetition: int) -> float:
        return self._burst(name, 1, 1 if self._options.quick else 2).p50 * 1e3

    def _burst(self, name: str, connections: int, seconds: int) -> Burst:
        url = self._contenders[name].url
        return self.generator.burst(url, self._body, JSON, connections=connections, seconds=seconds)


def _goals(rate: Series, p50: Series, rivals: Sequence[str]) -> list[Goal]:
    ours, floor, latency = rate.median(OURS), rate.median(FLOOR), p50.median(OURS)
    best = max((rate.median(name) or 0.0 for name in rivals), default=0.0)
    goals = []
    if ours and best:
        goals.append(Goal.least("req/s against the best rival", ours / best, 4, "×"))
    if ours and floor:
        goals.append(Goal.least("req/s against the floor", 100 * ours / floor, 65, "%"))
    if latency:
        goals.append(Goal.most("p50, 1 connection", latency, 0.35, "ms"))
    return goals
