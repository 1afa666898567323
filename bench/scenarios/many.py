"""`many`: ten thousand event streams, and ten thousand idle WebSockets, on one worker.

Fewer streams where a process may not have twice as many files.

The streams come from scripted upstreams through the relay, an event every two seconds each, and
must all go on; the sockets wait. Measured: memory of the worker for each, its CPU, and how long an
ordinary request takes meanwhile. The floor is the least relay, holding the same streams.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from rich.table import Table

from bench.asking import check_mlp, get_json
from bench.contenders import JSON, Contender, launch_penstock, penstock_listens
from bench.load.crowd import Crowd
from bench.load.holder import raise_file_limit
from bench.load.spec import LoadSpec
from bench.record import Goal, Record
from bench.relaying import FLOOR, OURS, Contest, check, cores, launch_floor, launch_ours, request
from bench.scenarios import Options, scenario
from bench.series import MeasureFailed
from bench.serving import Server, ServerFailed, rss_bytes
from bench.tables import number

HELD = 10_000
STEP_MS = 2000.0
WATCHED_S = 5.0
# What opening has left to do is over by then.
SETTLE_S = 0.5
# Two sockets for each stream in the relay; the rest is the process's own.
FILES, OWN_FILES = 4 * HELD, 200
ASKED = 20


@dataclass(frozen=True, slots=True)
class Held:
    """KB of the worker for each; `cpu`: of a core; `answer_ms`: the median of other requests."""

    kb: float
    cpu: float
    answer_ms: float
    events: int

    def to_json(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@scenario("many", "10,000 event streams and 10,000 idle WebSockets on one worker: memory, CPU")
def run(options: Options) -> Record:
    files = raise_file_limit(FILES)
    relayed = min(HELD, (files - OWN_FILES) // 2)
    if relayed < HELD:
        options.console.print(
            f"a process may have {files:,} files here: {relayed:,} streams instead of {HELD:,}"
        )
    found: dict[str, Held] = {}
    failures: dict[str, str] = {}
    ways: dict[str, Callable[[], Held]] = {
        "streams": lambda: streams(options, OURS, relayed),
        "streams, floor": lambda: streams(options, FLOOR, relayed),
        "WebSockets": lambda: sockets(options, HELD),
    }
    for name, way in ways.items():
        with options.console.status(f"{name} ..."):
            try:
                found[name] = way()
            except (MeasureFailed, ServerFailed) as error:
                failures[name] = str(error)
    options.console.print(_table(found, failures))
    ours, floor = found.get("streams"), found.get("streams, floor")
    return Record(
        scenario="many",
        metric=f"memory of an event stream, {relayed:,} held",
        unit="KB",
        higher_is_better=False,
        seed=options.seed,
        ours=None if ours is None else ours.kb,
        floor=None if floor is None else floor.kb,
        goals=[
            Goal.least(f"{what} held", count if what in found else 0, count, "")
            for what, count in (("streams", relayed), ("WebSockets", HELD))
        ],
        detail={
            "held": {name: one.to_json() for name, one in found.items()},
            "failures": failures,
            "event_every_ms": STEP_MS,
            "count": {"streams": relayed, "WebSockets": HELD},
        },
    )


def streams(options: Options, name: str, count: int) -> Held:
    """Through the relay `name`. Raises MeasureFailed, ServerFailed."""
    with cores() as core, ExitStack() as stack:
        contest = Contest(options, stack, core, (), stream=True)
        contest.start_upstreams(step_ms=STEP_MS)
        folder = options.folder / f"many-{name}"
        launch = launch_floor if name == FLOOR else launch_ours
        contender = launch(folder, contest.ports, core)
        stack.enter_context(contender.server)
        contender.ready()
        pid = contender.server.pid if name == FLOOR else _worker(contender.server)
        spec = LoadSpec(
            url=contender.url,
            body=request(stream=True),
            headers=JSON,
            connections=count,
            mode="openai",
            timeout_s=60.0,
        )

        def ask() -> None:
            check(contender, stream=False)

        return _hold(contender, pid, spec, ask)


def sockets(options: Options, count: int) -> Held:
    """Raises MeasureFailed, ServerFailed."""
    contender = launch_penstock(options.folder / "many-sockets")
    with contender.server as server:
        contender.ready()
        url = contender.base.replace("http", "ws") + "/ws"
        spec = LoadSpec(url=url, connections=count, mode="ws", timeout_s=60.0)
        return _hold(contender, _worker(server), spec, lambda: check_mlp(contender, options.seed))


def _worker(server: Server) -> int:
    (found,) = get_json(f"{penstock_listens(server)[1]}/status")["workers"]
    return int(found["pid"])


def _hold(contender: Contender, pid: int, spec: LoadSpec, ask: Callable[[], None]) -> Held:
    ask()
    time.sleep(SETTLE_S)
    before = rss_bytes(pid)
    with Crowd(spec) as crowd:
        time.sleep(SETTLE_S)
        events, cpu, began = crowd.look()[0], contender.server.cpu_seconds(), time.monotonic()
        time.sleep(WATCHED_S)
        now, ended = crowd.look()
        used = contender.server.cpu_seconds() - cpu
        seconds = time.monotonic() - began
        grown = rss_bytes(pid) - before
        times = []
        for _ in range(ASKED):
            at = time.monotonic()
            ask()
            times.append(time.monotonic() - at)
    if ended:
        raise MeasureFailed(f"{ended} of {spec.connections} ended while they were held")
    if spec.mode != "ws" and now - events < spec.connections:
        raise MeasureFailed(f"{spec.connections} streams had {now - events} events in {seconds} s")
    return Held(
        kb=grown / spec.connections / 1024,
        cpu=used / seconds,
        answer_ms=sorted(times)[len(times) // 2] * 1e3,
        events=now - events,
    )


def _table(found: dict[str, Held], failures: dict[str, str]) -> Table:
    table = Table(title="many at once", title_justify="left")
    for column in ("what", "memory of each", "CPU of the worker", "another request meanwhile"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for name, one in found.items():
        memory = f"{number(one.kb)} KB"
        table.add_row(name, memory, f"{one.cpu:.0%} of a core", f"{number(one.answer_ms)} ms")
    for name, reason in failures.items():
        table.add_row(name, reason, "", "")
    return table
