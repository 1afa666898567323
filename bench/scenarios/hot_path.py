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
import random
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import uvloop
from rich.table import Table

from backends import wire
from backends.wire import Buffer, Decoder, Kind, Signature, Status, TensorSpec
from bench.record import Record
from bench.scenarios import Options, scenario
from bench.serving import ROOT
from gateway.config import parse
from gateway.fleet import Fleet
from gateway.lane import Lane, Limits
from gateway.link import Link
from gateway.oip import OipSurface

CONNECTIONS = 64
SIGNATURE = Signature(
    inputs=(TensorSpec("x", "FP32", (10,)),),
    outputs=(TensorSpec("y", "FP32", (10,)),),
    max_batch_size=64,
)
CONFIG = '[[models]]\nname = "m"\n[[models.replicas]]\nname = "r"\naddress = "unix:/nowhere"\n'
BODY = (
    b'{"inputs":[{"name":"x","shape":[1,10],"datatype":"FP32",'
    b'"data":[0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1.0]}]}'
)
REQUEST = (
    b"POST /v2/models/m/infer HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nContent-Length: %d\r\n\r\n"
    % len(BODY)
    + BODY
)


class Sink(asyncio.Transport):
    """A client's end: counts what is written and forgets it."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1)})
        self.answers = 0

    def write(self, data: Any) -> None:
        self.answers += 1

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def abort(self) -> None: ...
    def close(self) -> None: ...


class Mirror(Sink):
    """A replica's end of a link: its STATUS to a HELLO, and each batch back as its own answer."""

    def __init__(self, link: Link, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._link, self._loop, self._decoder = link, loop, Decoder()
        self.own_s = 0.0  # CPU time of this stand-in, which is not the gateway's

    def write(self, data: Any) -> None:
        began = time.process_time()
        for frame in self._decoder.feed(data):
            if frame.kind == Kind.HELLO:
                status = Status(
                    model="m",
                    kind="tensor",
                    state="ready",
                    version="1-a",
                    versions=("1-a",),
                    slots=2,
                    signature=SIGNATURE.to_json(),
                )
                self._loop.call_soon(self._say, wire.encode(Kind.STATUS, 0, status.to_json()))
            elif frame.kind == Kind.EXECUTE:
                rows = frame.json()["rows"]
                meta = wire.result_meta(
                    [("y", "FP32", [sum(rows), 10])],
                    rows,
                    sizes=[len(frame.data)],
                    version="1-a",
                    queue_us=1,
                    compute_us=100,
                    batch=sum(rows),
                )
                answer = wire.encode(Kind.RESULT, frame.id, meta, [frame.data])
                self._loop.call_soon(self._say, answer)
        self.own_s += time.process_time() - began

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def _say(self, buffers: list[Buffer]) -> None:
        rest = memoryview(b"".join(buffers))
        while rest:
            room = self._link.get_buffer(-1)
            taken = min(len(room), len(rest))
            room[:taken] = rest[:taken]
            rest = rest[taken:]
            self._link.buffer_updated(taken)


class MirrorLoop(uvloop.Loop):
    """A loop on which every UNIX socket leads to a mirror."""

    mirrors: ClassVar[list[Mirror]] = []

    async def create_unix_connection(self, make: Any, path: Any = None, **more: Any) -> Any:
        link = make()
        mirror = Mirror(link, self)
        self.mirrors.append(mirror)
        link.connection_made(mirror)
        return mirror, link


@asynccontextmanager
async def worker() -> AsyncIterator[list[tuple[asyncio.Protocol, Sink]]]:
    """A worker's inside with its clients' connections, ready for requests."""
    fleet = Fleet(
        parse(CONFIG, Path("hot-path.toml"), {}),
        Path("."),
        gateway="bench",
        switch=lambda op, model, done: done(None),
        loop=asyncio.get_running_loop(),
        rng=random.Random(0),
    )
    try:
        lane = Lane(OipSurface(fleet).resolve, None, Limits())
        await fleet.met(10.0)
        clients = [(lane.protocol(), Sink()) for _ in range(CONNECTIONS)]
        for protocol, sink in clients:
            protocol.connection_made(sink)
        yield clients
    finally:
        await fleet.close()


async def ask_all(clients: list[tuple[asyncio.Protocol, Sink]]) -> None:
    """One request on each connection, as they come in one turn of the loop, and its answer."""
    for protocol, sink in clients:
        sink.answers = 0
        protocol.data_received(REQUEST)
    while not all(sink.answers for _, sink in clients):  # noqa: ASYNC110
        await asyncio.sleep(0)


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
    by_module.pop("bench/scenarios/hot_path.py", None)
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
    return Record(
        scenario="hot-path",
        metric="cpu_per_request",
        unit="us",
        higher_is_better=False,
        seed=options.seed,
        ours=ours,
        detail={"repetitions": figures, "shares": dict(shares)},
    )
