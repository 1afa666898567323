"""`small-tensor`: what serving costs when the model costs nothing (targets 1 and 2).

One 10→20→10 network, one JSON request a row, batches of up to 64: 64 keep-alive connections for
the rate, one for the latency. Ours with everything on, the floor and the rivals run at the same
time on the same machine and are measured in turns; idle ones wait.
"""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
from rich.table import Table

from bench.asking import check_mlp, json_body
from bench.contenders import JSON, Contender, launch_penstock, launch_tensor_floor, start_all
from bench.load import wrk
from bench.models import mlp
from bench.record import Goal, Record
from bench.rivals import RIVALS
from bench.scenarios import Options, scenario
from bench.series import MeasureFailed, Series, interleave

CONNECTIONS = 64
OURS, FLOOR = "penstock", "floor"


@scenario("small-tensor", "a tiny network, JSON, 64 connections and 1: what serving itself costs")
def run(options: Options) -> Record:
    repetitions, seconds = (3, 1) if options.quick else (7, 4)
    rate = Series("requests a second, 64 connections", "req/s", higher_is_better=True)
    p50 = Series("p50, 1 connection", "ms", higher_is_better=False)
    rng = np.random.default_rng(options.seed)
    body = json_body(rng.normal(size=(1, mlp.INPUTS)).astype(np.float32))
    with ExitStack() as stack:
        contenders = _start(stack, options, rate)
        for name, contender in contenders.items():
            try:
                check_mlp(contender, options.seed)
            except MeasureFailed as error:
                rate.failures[name] = str(error)

        def burst(name: str, connections: int, seconds: int) -> wrk.Burst:
            found = wrk.run(
                contenders[name].url, body, JSON, connections=connections, seconds=seconds
            )
            if found.failed:
                raise MeasureFailed(f"{found.failed} of {found.requests} requests failed")
            return found

        def measure_rate(name: str, repetition: int) -> float:
            if repetition == 0 or not options.quick:
                burst(name, CONNECTIONS, 1)  # warm-up
            return burst(name, CONNECTIONS, seconds).rate

        names = [name for name in contenders if name not in rate.failures]
        interleave(rate, names, repetitions, measure_rate)
        p50.failures |= rate.failures
        interleave(
            p50,
            names,
            1 if options.quick else 3,
            lambda name, _: burst(name, 1, 1).p50 * 1e3,
        )
        versions = {k: v for c in contenders.values() for k, v in c.versions.items()}
    rivals = [name for name in _rivals(options)]
    options.console.print(_table(rate, p50, [OURS, FLOOR, *rivals]))
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
            "p50_1_connection_ms": {name: p50.figure(name) for name in [OURS, FLOOR, *rivals]},
            "repetitions": {"rate": rate.to_json(), "p50_1_connection": p50.to_json()},
            "generator": "wrk",
        },
        versions=versions,
    )


def _rivals(options: Options) -> tuple[str, ...]:
    return tuple(RIVALS) if options.rivals is None else options.rivals


def _start(stack: ExitStack, options: Options, rate: Series) -> dict[str, Contender]:
    launches = {
        OURS: lambda: launch_penstock(options.folder),
        FLOOR: lambda: launch_tensor_floor(options.folder),
    }
    for name in _rivals(options):
        launches[name] = lambda rival=RIVALS[name]: rival.launch(options.folder)  # type: ignore[misc]
    with options.console.status("starting the servers ..."):
        contenders, failures = start_all(stack, launches)
    rate.failures |= failures
    return contenders


def _goals(rate: Series, p50: Series, rivals: list[str]) -> list[Goal]:
    ours, floor, latency = rate.median(OURS), rate.median(FLOOR), p50.median(OURS)
    best = max((rate.median(name) or 0.0 for name in rivals), default=0.0)
    goals = []
    if ours and best:
        times = ours / best
        goals.append(
            Goal(
                what="against the best rival",
                wanted="≥ 4 ×",
                found=f"{times:.2f} ×",
                met=times >= 4,
            )
        )
    if ours and floor:
        share = ours / floor
        goals.append(
            Goal(what="of the floor", wanted="≥ 65 %", found=f"{share:.0%}", met=share >= 0.65)
        )
    if latency:
        goals.append(
            Goal(
                what="p50, 1 connection",
                wanted="≤ 0.35 ms",
                found=f"{latency:.2f} ms",
                met=latency <= 0.35,
            )
        )
    return goals


def _table(rate: Series, p50: Series, names: list[str]) -> Table:
    table = Table(title="small-tensor", title_justify="left")
    table.add_column("server")
    for column in ("req/s, 64 connections", "spread", "p50, 1 connection"):
        table.add_column(column, justify="right")
    for name in names:
        if name in rate.failures:
            table.add_row(name, "unavailable", "", "")
            continue
        figure, spread, latency = rate.median(name), rate.spread(name), p50.median(name)
        table.add_row(
            name,
            f"{figure:,.0f}" if figure else "",
            f"{spread:.0%}" if spread is not None else "",
            f"{latency:.2f} ms" if latency else "",
        )
    return table
