"""The inside of a worker on transports that keep nothing: the hot path without the kernel.

Owns the stand-ins for clients and for a replica, which sends back what it gets as its answer. What
is between them is the product's: lane, surface, model, batcher and link.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import uvloop

from backends import wire
from backends.wire import Buffer, Decoder, Kind, Signature, Status, TensorSpec
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
