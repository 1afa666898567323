"""`small-tensor`: what serving costs when the model costs nothing (targets 1 and 2).

One 10→20→10 network, one JSON request a row, batches of up to 64: 64 keep-alive connections for
the rate, one for the latency. Ours with everything on, the floor and the rivals that come near are
up together and are measured in turns; what the idle ones use meanwhile is reported. Rivals that are
far behind come after them, one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial

import numpy as np
from rich.markup import escape

from bench.asking import check_mlp
from bench.contenders import JSON, Contender, launch_penstock, launch_tensor_floor, start_all
from bench.load.burst import Burst, Generator
from bench.load.holder import raise_file_limit
from bench.models import mlp
from bench.record import Goal, Record
from bench.rivals import RIVALS, chosen
from bench.scenarios import Options, scenario
from bench.scenarios.small_tensor_detail import detail
from bench.series import MeasureFailed, Series, interleave
from bench.tables import cost_table, figures_table

CONNECTIONS = 64
OURS, FLOOR = "penstock", "floor"


@scenario("small-tensor", "a tiny network, JSON, 64 connections and 1: what serving itself costs")
def run(options: Options) -> Record:
    raise_file_limit()
    rivals = chosen(options.rivals, quick=options.quick)
    names = [OURS, FLOOR, *rivals]
    with ExitStack() as stack:
        bench = _Bench(options, stack, rivals)
        rate, p50 = bench.measure()
        options.console.print(figures_table("small-tensor", names, [rate, p50]))
        options.console.print(cost_table("server", bench.cpu_us, bench.memory))
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
            "cpu": bench.cpu,
            "cpu_us_per_request": bench.cpu_us,
            "rss_mb": bench.memory,
            "generator": bench.generator.name,
            "generator_limits": bench.limits,
            **more,
        },
        versions=bench.versions,
    )


class _Bench:
    """The servers that are up, and the bursts on them. `cpu`: what the measured server used for a
    request, and what all the idle ones used meanwhile, at the last repetition; `memory`: MB of all
    its processes then."""

    def __init__(self, options: Options, stack: ExitStack, rivals: Sequence[str]) -> None:
        self._options, self._stack = options, stack
        self.generator = Generator()
        self.cpu: dict[str, dict[str, float]] = {}
        self.memory: dict[str, float] = {}
        self.limits: dict[str, str] = {}
        self.versions: dict[str, str] = {}
        self._contenders: dict[str, Contender] = {}
        rng = np.random.default_rng(options.seed)
        self._row_1I = rng.normal(size=(1, mlp.INPUTS)).astype(np.float32)
        self._rate = Series("rate, 64 connections", "req/s", higher_is_better=True)
        self._p50 = Series("p50, 1 connection", "ms", higher_is_better=False)
        self._near = [name for name in rivals if not RIVALS[name].slow]
        self._far = [name for name in rivals if RIVALS[name].slow]

    def measure(self) -> tuple[Series, Series]:
        folder, quick = self._options.folder, self._options.quick
        launches: dict[str, Callable[[], Contender]] = {
            OURS: partial(launch_penstock, folder / OURS, models=("mlp", "image")),
            FLOOR: partial(launch_tensor_floor, folder / FLOOR),
        }
        for name in self._near:
            launches[name] = partial(RIVALS[name].launch, folder / name)
        self._turns(self._start(launches), 3 if quick else 7, 1 if quick else 5)
        for name in self._far:
            names = self._start({name: partial(RIVALS[name].launch, folder / name)})
            self._turns(names, 3, 1 if quick else 3)
            for name in names:
                self._contenders.pop(name).server.stop()
        return self._rate, self._p50

    def _start(self, launches: Mapping[str, Callable[[], Contender]]) -> list[str]:
        """The names of those that serve and answer rightly."""
        console = self._options.console
        with console.status(f"starting {', '.join(launches)} ..."):
            started, failed = start_all(self._stack, launches)
        for name, error in failed.items():
            self._fail(name, str(error))
            if error.said:
                console.print(f"[yellow]{name} said:\n{escape(error.said)}")
        good = []
        for name, contender in started.items():
            self._contenders[name] = contender
            self.versions |= contender.versions
            try:
                check_mlp(contender, self._options.seed)
            except MeasureFailed as error:
                self._fail(name, str(error))
            else:
                good.append(name)
        return good

    def _fail(self, name: str, reason: str) -> None:
        self._rate.failures[name] = self._p50.failures[name] = reason

    def _turns(self, names: Sequence[str], rates: int, latencies: int) -> None:
        with self._options.console.status("64 connections ..."):
            interleave(self._rate, names, rates, self._measure_rate)
        self._p50.failures |= self._rate.failures
        with self._options.console.status("1 connection ..."):
            interleave(self._p50, names, latencies, self._measure_p50)

    @property
    def cpu_us(self) -> dict[str, float]:
        return {name: cpu["us_per_request"] for name, cpu in self.cpu.items()}

    @property
    def ours(self) -> Contender:
        return self._contenders[OURS]

    def stop_others(self) -> None:
        for name, contender in self._contenders.items():
            if name != OURS:
                contender.server.stop()

    def _measure_rate(self, name: str, repetition: int) -> float:
        quick = self._options.quick
        if repetition == 0 or not quick:
            self._warm_up(name)
        before = {other: c.server.cpu_seconds() for other, c in self._contenders.items()}
        burst = self._burst(name, CONNECTIONS, 1 if quick else 4)
        used = {
            other: contender.server.cpu_seconds() - before[other]
            for other, contender in self._contenders.items()
        }
        self.cpu[name] = {
            "us_per_request": used.pop(name) / burst.ok * 1e6,
            "idle_servers_cores": sum(used.values()) / burst.seconds,
        }
        self.memory[name] = self._contenders[name].server.rss_bytes() / 1e6
        if burst.limit is not None:
            self.limits[name] = burst.limit
        return burst.rate

    def _warm_up(self, name: str) -> None:
        """Caches, allocators, learned service times; a server that learns may refuse meanwhile."""
        with suppress(MeasureFailed):
            self._burst(name, CONNECTIONS, 3 if name in self._far else 1)

    def _measure_p50(self, name: str, repetition: int) -> float:
        return self._burst(name, 1, 1 if self._options.quick else 2).p50 * 1e3

    def _burst(self, name: str, connections: int, seconds: int) -> Burst:
        contender = self._contenders[name]
        body = contender.request(self._row_1I)
        return self.generator.burst(
            contender.url, body, JSON, connections=connections, seconds=seconds
        )


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
