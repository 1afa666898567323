"""`idle`: what the gateway costs before anybody asks (target 13): start, memory, connections.

Measured on the gateway's own processes, with its replica up beside it. The floor is the least HTTP
server on the same parts. While the connections are held, requests must still be answered.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from bench.asking import check_mlp, get_json
from bench.contenders import launch_penstock, penstock_listens
from bench.load.holder import raise_file_limit
from bench.load.holding import Holding
from bench.record import Goal, Record
from bench.scenarios import Options, scenario
from bench.series import MeasureFailed, Series, interleave
from bench.serving import Server, ServerFailed, answers, python, rss_bytes
from bench.tables import metrics_table

OURS, FLOOR = "penstock", "floor"
HELD = (1_000, 10_000)
# What a closed or an opened connection has yet to cause is over by then.
SETTLE_S = 0.3


@scenario("idle", "ready time, memory of a worker, memory of an idle connection")
def run(options: Options) -> Record:
    raise_file_limit()
    ready = Series("start to ready", "s", higher_is_better=False)
    memory = Series("memory of a worker", "MB", higher_is_better=False)
    small, large = (
        Series(f"memory of an idle connection, {count:,} held", "KB", higher_is_better=False)
        for count in HELD
    )
    figures = {"ready": ready, "memory": memory, "small": small, "large": large}
    repetitions = 2 if options.quick else 5

    def measure(name: str, repetition: int) -> float:
        folder = options.folder / f"{name}-{repetition}"
        with options.console.status(f"{name}, repetition {repetition + 1} of {repetitions} ..."):
            found = _ours(options, folder) if name == OURS else _floor(folder)
        for key, value in found.items():
            if key != "ready":
                figures[key].values.setdefault(name, []).append(value)
        return found["ready"]

    interleave(ready, [OURS, FLOOR], repetitions, measure)
    options.console.print(metrics_table("idle", [OURS, FLOOR], list(figures.values())))
    for name, reason in ready.failures.items():
        options.console.print(f"{name}: {reason}", style="yellow", markup=False)
    return Record(
        scenario="idle",
        metric=large.metric,
        unit=large.unit,
        higher_is_better=False,
        seed=options.seed,
        ours=large.median(OURS),
        floor=large.median(FLOOR),
        goals=_goals(ready, memory, large),
        detail={
            "ready_s": ready.median(OURS),
            "worker_rss_mb": memory.median(OURS),
            "kb_per_connection": {
                str(count): series.median(OURS)
                for count, series in zip(HELD, (small, large), strict=True)
            },
            "failures": ready.failures,
            "repetitions": {series.metric: series.to_json() for series in figures.values()},
        },
    )


def _goals(ready: Series, memory: Series, large: Series) -> list[Goal]:
    wanted = (
        ("gateway ready", ready, 1.0),
        ("memory of its worker", memory, 80.0),
        ("an idle connection", large, 12.0),
    )
    return [
        Goal.most(what, found, limit, series.unit)
        for what, series, limit in wanted
        if (found := series.median(OURS)) is not None
    ]


def _ours(options: Options, folder: Path) -> dict[str, float]:
    contender = launch_penstock(folder)
    with contender.server as server:
        try:
            base, admin = penstock_listens(server, every=0.002)
            ready = server.wait_ready(f"{base}/healthz", every=0.002)
            contender.ready()
        except ServerFailed as error:
            raise MeasureFailed(str(error)) from error
        (worker,) = [found["pid"] for found in get_json(f"{admin}/status")["workers"]]

        def serves() -> None:
            check_mlp(contender, options.seed)

        serves()
        return {"ready": ready, **_memory(worker, base, "/healthz", serves)}


def _floor(folder: Path) -> dict[str, float]:
    command = python("-m", "bench.floors.http_floor")
    with Server("floor", command, log=folder / "floor.log") as server:
        try:
            said = server.wait_said(r"listening on (127.0.0.1:[0-9]+)", every=0.002)
            base = f"http://{said[1]}"
            ready = server.wait_ready(base, every=0.002)
        except ServerFailed as error:
            raise MeasureFailed(str(error)) from error

        def serves() -> None:
            if not answers(base):
                raise MeasureFailed("it does not answer while connections are held")

        return {"ready": ready, **_memory(server.pid, base, "/", serves)}


def _memory(pid: int, base: str, path: str, serves: Callable[[], None]) -> dict[str, float]:
    """Of the process `pid`: its memory as it is, and what each held connection adds to it."""
    before = _settled(pid)
    found = {"memory": before / 1e6}
    for key, count in zip(("small", "large"), HELD, strict=True):
        with Holding(base, path, count) as holding:
            grown = _settled(pid) - before
            serves()
            holding.ask()
        found[key] = grown / count / 1024
    return found


def _settled(pid: int) -> int:
    time.sleep(SETTLE_S)
    return rss_bytes(pid)
