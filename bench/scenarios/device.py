"""`device`: how well servers form batches, on a device whose time for a batch is the same for all.

The network of `small-tensor` on a device that takes ℓ(b) = τ₀ + α·b (BENCH_DEVICE_MS, "8:0.1" left
out), requests of one row in an open loop of Poisson arrivals, at shares of what full batches carry.
What counts is the share of all requests answered within a limit; latency is from the intended time.
Ours, the floor and the near rivals are up together and take turns; the far ones come alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from rich.table import Table

from bench.asking import check_mlp
from bench.contenders import JSON, Contender, launch_penstock, launch_tensor_floor, start_all
from bench.load import generator
from bench.load.knee import Point
from bench.load.spec import LoadReport, LoadSpec
from bench.models import mlp
from bench.models.device import VARIABLE, Curve
from bench.record import Goal, Record
from bench.rivals import RIVALS, chosen
from bench.scenarios import Options, scenario
from bench.series import MeasureFailed, Series, interleave
from bench.tables import number

OURS, FLOOR = "penstock", "floor"
DEFAULT = Curve(8.0, 0.1)
LOADS, QUICK_LOADS = (0.3, 0.6, 0.8, 0.9, 1.0), (0.6, 0.9, 1.0)
# Of full batches: one that just left, and one's own.
LIMIT_BATCHES = 3.0
JUDGED = 0.9
CONNECTIONS = 512
UNANSWERED = ("timeout", "never sent")


@scenario("device", "a device of known speed for all: who answers in time as the load rises")
def run(options: Options) -> Record:
    rivals = chosen(options.rivals, quick=options.quick)
    curve = Curve.given() or DEFAULT
    with _device(curve), ExitStack() as stack:
        contest = _Contest(options, stack, curve)
        near = [name for name in rivals if not RIVALS[name].slow]
        contest.play([OURS, FLOOR, *near], 1 if options.quick else 3)
        for name in rivals:
            if RIVALS[name].slow:
                contest.play([name], 1)
    judged = contest.in_time[JUDGED]
    names = [OURS, FLOOR, *rivals]
    options.console.print(_table(curve, contest, names))
    return Record(
        scenario="device",
        metric=judged.metric,
        unit=judged.unit,
        higher_is_better=True,
        seed=options.seed,
        ours=judged.median(OURS),
        floor=judged.median(FLOOR),
        rivals={name: judged.figure(name) for name in rivals},
        goals=_goals(contest, rivals),
        detail={
            "device_ms": {"base": curve.base_ms, "row": curve.row_ms},
            "limit_ms": contest.limit_s * 1e3,
            "loads": {str(load): load * contest.capacity for load in contest.in_time},
            "curve": {name: list(points.values()) for name, points in contest.points.items()},
            "batches": contest.batches,
            "repetitions": {one.metric: one.to_json() for one in contest.in_time.values()},
        },
        versions=contest.versions,
    )


@contextmanager
def _device(curve: Curve) -> Iterator[None]:
    """Every server that is started meanwhile has it."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(curve)
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


@dataclass(slots=True)
class _Contest:
    options: Options
    stack: ExitStack
    curve: Curve
    capacity: float = 0.0
    limit_s: float = 0.0
    in_time: dict[float, Series] = field(default_factory=dict[float, Series])
    points: dict[str, dict[float, dict[str, Any]]] = field(default_factory=dict)
    batches: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    versions: dict[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        self.capacity = self.curve.capacity(mlp.MAX_BATCH)
        self.limit_s = LIMIT_BATCHES * self.curve.seconds(mlp.MAX_BATCH)
        for load in QUICK_LOADS if self.options.quick else LOADS:
            name = f"in {self.limit_s * 1e3:.0f} ms, load {load:g}"
            self.in_time[load] = Series(name, "%", higher_is_better=True)

    def play(self, names: Sequence[str], repetitions: int) -> None:
        """Start them, and take turns at each load; what cannot run is told by each series."""
        up = self._start(names)
        for load, series in self.in_time.items():
            with self.options.console.status(f"{', '.join(names)}, load {load:g} ..."):

                def measure(name: str, turn: int, load: float = load) -> float:
                    return self._measure(up[name], name, load, turn)

                interleave(series, list(up), repetitions, measure)
        for contender in up.values():
            contender.server.stop()

    def _start(self, names: Sequence[str]) -> dict[str, Contender]:
        folder = self.options.folder
        launches: dict[str, Callable[[], Contender]] = {}
        for name in names:
            if name == OURS:
                launches[name] = partial(launch_penstock, folder / name)
            elif name == FLOOR:
                launches[name] = partial(launch_tensor_floor, folder / name)
            else:
                launches[name] = partial(RIVALS[name].launch, folder / name)
        with self.options.console.status(f"starting {', '.join(names)} ..."):
            started, failed = start_all(self.stack, launches)
        for name, error in failed.items():
            self._out(name, str(error))
        for name, contender in list(started.items()):
            self.versions |= contender.versions
            try:
                check_mlp(contender, self.options.seed)
                self._load(contender, min(self.in_time), 1)  # learned times and windows
            except (MeasureFailed, generator.LoadFailed) as error:
                self._out(name, str(error))
                started.pop(name).server.stop()
        return started

    def _out(self, name: str, reason: str) -> None:
        self.options.console.print(f"{name}: {reason}", style="yellow", markup=False)
        for series in self.in_time.values():
            series.failures[name] = reason

    def _measure(self, contender: Contender, name: str, load: float, turn: int) -> float:
        report = self._load(contender, load, self.options.seed + turn)
        rate = load * self.capacity
        self.points.setdefault(name, {})[load] = Point.of(rate, report).to_json()
        if report.mean_batch is not None:
            found = {"load": load, "mean_batch": report.mean_batch}
            self.batches = [one for one in self.batches if one["load"] != load] + [found]
        return 100 * in_time(report, self.limit_s)

    def _load(self, contender: Contender, load: float, seed: int) -> LoadReport:
        row_1I = np.random.default_rng(seed).normal(size=(1, mlp.INPUTS)).astype(np.float32)
        spec = LoadSpec(
            url=contender.url,
            headers=JSON,
            body=contender.request(row_1I),
            connections=CONNECTIONS,
            rate=load * self.capacity,
            seconds=1.0 if self.options.quick else 5.0,
            warmup_s=0.3 if self.options.quick else 1.0,
            timeout_s=2.0,
            timing=contender.name == OURS,
            seed=seed,
        )
        try:
            return generator.run(spec)
        except generator.LoadFailed as error:
            raise MeasureFailed(str(error)) from error


def in_time(report: LoadReport, limit_s: float) -> float:
    """The share of all requests that was answered well within it."""
    if not report.sent:
        return 0.0
    within = report.latency.share_within(limit_s) * report.latency.count
    # The histogram holds failures too; those that took their time are beyond the limit.
    quick = sum(count for why, count in report.errors.items() if why not in UNANSWERED)
    return max(0.0, (within - quick) / report.sent) if report.latency.count else 0.0


def _goals(contest: _Contest, rivals: Sequence[str]) -> list[Goal]:
    """That no rival is ahead by more than what two runs of one server differ by."""
    goals = []
    for load, series in contest.in_time.items():
        ours = series.median(OURS)
        best = max((series.median(name) or 0.0 for name in rivals), default=0.0)
        if ours is not None and best:
            what = f"answered in time at load {load:g}, against the best rival"
            goals.append(Goal.least(what, ours / best, 0.98, "×"))
    return goals


def _table(curve: Curve, contest: _Contest, names: Sequence[str]) -> Table:
    limit = f"{contest.limit_s * 1e3:.0f} ms"
    takes = f"a batch of b takes {curve.base_ms:g} + {curve.row_ms:g}·b ms"
    title = f"answered within {limit}, and p99; {takes}"
    table = Table(title=title, title_justify="left")
    table.add_column("server")
    for load in contest.in_time:
        table.add_column(f"{number(load * contest.capacity)}/s", justify="right")
    for name in names:
        cells = []
        for load, series in contest.in_time.items():
            share, point = series.median(name), contest.points.get(name, {}).get(load)
            if share is None or point is None:
                cells.append("unavailable")
            else:
                cells.append(f"{share:.1f} %\n{number(point['p99'] * 1e3)} ms")
        table.add_row(name, *cells)
    return table
