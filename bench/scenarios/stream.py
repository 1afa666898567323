"""`stream`: what relaying event streams costs when the engine costs nothing (target 4).

Two scripted upstreams that write 64 events a stream, one to each open stream in turn, without a
pause: 64 streams at a time for the rate, one for the latency. Otherwise as `relay`. The client and
the upstreams are soon the limit there, and a relay with time left moves smaller pieces; so 256
streams are sent at an engine's pace too, an event every 10 ms, and the relay's CPU is what counts.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

from rich.table import Table

from bench.record import Goal, Record
from bench.relaying import OURS, Contest, cores
from bench.rivals import RELAYS, chosen
from bench.scenarios import Options, scenario
from bench.scenarios.relay import measure
from bench.series import Series, interleave
from bench.tables import number

STEP_MS, STREAMS = 10.0, 256


@scenario("stream", "OpenAI event streams of 64 chunks to two upstreams: what relaying them costs")
def stream(options: Options) -> Record:
    record = measure(options, "stream", "streams/s", stream=True)
    if options.quick:
        return record
    cpu = Series("CPU of a stream, paced", "us", higher_is_better=False)
    folder = options.folder / "paced"
    folder.mkdir()
    _paced(replace(options, folder=folder), cpu)
    table = Table(title=f"{STREAMS} streams, an event every {STEP_MS:g} ms", title_justify="left")
    table.add_column("relay")
    table.add_column("CPU of the relay for a stream", justify="right")
    for name in cpu.values:
        table.add_row(name, f"{number(cpu.median(name) or 0.0)} µs")
    options.console.print(table)
    repetitions = {**record.detail["repetitions"], cpu.metric: cpu.to_json()}
    paced = {"step_ms": STEP_MS, "streams": STREAMS, "failures": cpu.failures}
    ours, its = cpu.median(OURS), cpu.median("haproxy")
    goals = list(record.goals)
    if ours and its:
        goals.append(Goal.most("CPU of a paced stream against haproxy's", ours / its, 1.0, "×"))
    detail = {**record.detail, "repetitions": repetitions, "paced": paced}
    return replace(record, goals=goals, detail=detail)


def _paced(options: Options, cpu: Series) -> None:
    rivals = chosen(options.rivals, quick=True, among=RELAYS)
    with cores() as core, ExitStack() as stack:
        contest = Contest(options, stack, core, rivals, stream=True)
        contest.start_upstreams(step_ms=STEP_MS)

        def once(name: str, repetition: int) -> float:
            with options.console.status(f"{name}, paced ..."):
                contest.burst(name, STREAMS, 3, metered=True)
            return contest.cpu[name]

        interleave(cpu, contest.start(contest.near), 3, once)
        cpu.failures |= contest.failures
