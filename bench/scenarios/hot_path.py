"""`hot-path`: what a small JSON request costs a worker in Python, without the kernel's part.

Runs the real lane, surface, model, batcher and link in this process, on transports that keep
nothing: what is sent to the replica comes back as its answer. CPU time of the process, so that
neighbours disturb it little. It says where to look, not how fast the gateway is: `small-tensor`
does that.
"""

from __future__ import annotations

import asyncio
import cProfile
import pstats
import statistics
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from rich.table import Table

from bench import counting
from bench.mirror import CONNECTIONS, MirrorLoop, ask_all, worker
from bench.record import Goal, Record
from bench.scenarios import Options, scenario
from bench.serving import ROOT
from bench.tables import number


async def measure(rounds: int, repetitions: int) -> list[float]:
    """Microseconds of CPU per request, one figure a repetition."""
    figures = []
    async with worker() as clients:
        (mirror,) = MirrorLoop.mirrors
        for repetition in range(repetitions + 1):
            began, mirrored = time.process_time(), mirror.own_s
            for _ in range(rounds):
                await ask_all(clients)
            spent = time.process_time() - began - (mirror.own_s - mirrored)
            if repetition:  # the first one warms up
                figures.append(spent / rounds / CONNECTIONS * 1e6)
    return figures


async def parts(rounds: int) -> list[tuple[str, float]]:
    """Share of the profiled time by module of ours, own time, largest first."""
    profile = cProfile.Profile()
    async with worker() as clients:
        profile.enable()
        for _ in range(rounds):
            await ask_all(clients)
        profile.disable()
    by_module: Counter[str] = Counter()
    for (file, _, _), (_, _, own, _, callers) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        if file.startswith(str(ROOT)):
            by_module[str(Path(file).relative_to(ROOT))] += own
        else:  # built-in functions count for who calls them
            for (caller, _, _), (_, _, part, _) in callers.items():
                if caller.startswith(str(ROOT)):
                    by_module[str(Path(caller).relative_to(ROOT))] += part
    by_module.pop("bench/mirror.py", None)
    total = sum(by_module.values())
    return [(module, own / total) for module, own in by_module.most_common()]


@scenario("hot-path", "CPU that a small request takes in a worker, by part, without the kernel")
def hot_path(options: Options) -> Record:
    rounds, repetitions = (100, 3) if options.quick else (400, 7)
    with asyncio.Runner(loop_factory=MirrorLoop) as runner:
        figures = runner.run(measure(rounds, repetitions))
        MirrorLoop.mirrors.clear()
        shares = runner.run(parts(rounds))
    ours = statistics.median(figures)
    table = Table(title=f"{ours:.1f} µs a request, by module (own time, as profiled)")
    table.add_column("module")
    table.add_column("share", justify="right")
    table.add_column("µs", justify="right")
    for module, share in shares[:20]:
        table.add_row(module, f"{share:.1%}", f"{share * ours:.2f}")
    options.console.print(table)
    executed, before = counting.bytecode(), counting.recorded()
    machine = None if options.quick else counting.machine()
    options.console.print(_counted(executed, before, machine))
    goals = []
    if before is not None:
        ratio = executed["all"] / before["all"]
        most = 1 + counting.TOLERANCE
        goals.append(Goal.most("bytecode against what is recorded", ratio, most, "×"))
    return Record(
        scenario="hot-path",
        metric="cpu_per_request",
        unit="us",
        higher_is_better=False,
        seed=options.seed,
        ours=ours,
        goals=goals,
        detail={
            "repetitions": {
                "CPU": {"unit": "us", "higher_is_better": False, "values": {"penstock": figures}}
            },
            "shares": dict(shares),
            "bytecode": executed,
            "bytecode_recorded": before,
            "machine_instructions": machine,
        },
    )


def _counted(
    executed: Mapping[str, float], before: Mapping[str, float] | None, machine: float | None
) -> Table:
    table = Table(title="instructions a request", title_justify="left")
    for column in ("part", "bytecode", "recorded"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part, count in executed.items():
        table.add_row(part, number(count), "" if before is None else number(before[part]))
    if machine is not None:
        table.add_row("the processor's", number(machine), "")
    return table
