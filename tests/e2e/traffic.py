"""Steady open-loop traffic against one URL, every answer kept; used while things are broken."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import aiohttp


@dataclass(slots=True)
class Answer:
    value: float
    stamp: float
    version: str
    served_by: str


@dataclass(slots=True)
class Record:
    """sent = answers + failures once the traffic has stopped."""

    sent: int = 0
    answers: list[Answer] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def versions(self) -> Counter[str]:
        return Counter(answer.version for answer in self.answers)


async def ask(session: aiohttp.ClientSession, url: str, value: float, **headers: str) -> Answer:
    """One raw-binary request to the stamp model. Raises for anything but an answer."""
    async with session.post(
        f"{url}/v2/models/stamp/infer",
        data=struct.pack("<f", value),
        headers={"inference-header-content-length": "0", **headers},
    ) as reply:
        body = await reply.read()
        if reply.status != 200:
            raise RuntimeError(f"{reply.status} {body[:200]!r}")
        echoed, stamp = struct.unpack("<2f", body[-8:])
        return Answer(echoed, stamp, reply.headers["x-model-version"], reply.headers["x-served-by"])


@contextlib.asynccontextmanager
async def steady(
    url: str, *, rate: float = 150.0, reconnect: bool = False
) -> AsyncIterator[Record]:
    """Traffic while the block runs; on leaving, all that was sent has ended. `reconnect`: a request
    whose connection broke is sent once more, as clients of a process that may die do."""
    record = Record()
    stop = asyncio.Event()

    async def one(session: aiohttp.ClientSession, number: int) -> None:
        value = float(number % 10)
        try:
            try:
                answer = await ask(session, url, value)
            except aiohttp.ClientConnectionError:
                if not reconnect:
                    raise
                answer = await ask(session, url, value)
            assert answer.value == value, f"asked {value}, got {answer.value}"
            record.answers.append(answer)
        except Exception as error:
            record.failures.append(repr(error))

    async def run() -> None:
        loop = asyncio.get_running_loop()
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=40)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            asyncio.TaskGroup() as group,
        ):
            due = loop.time()
            while not stop.is_set():
                group.create_task(one(session, record.sent))
                record.sent += 1
                due += 1 / rate
                await asyncio.sleep(max(0.0, due - loop.time()))

    task = asyncio.create_task(run())
    try:
        yield record
    finally:
        stop.set()
        await task
