"""Tensors across reloads: the part of `reload` that serves them, and Triton beside it.

Every answer tells which weights made it at both ends of the model (`bench.models.reload`). Counted:
requests that failed, answers that mix versions, answers that name another version than made them.
Measured: latencies from the intended time, gaps between answers, the swap's pause, memory.
"""

from __future__ import annotations

import asyncio
import json
import re
import struct
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import numpy as np

from bench.following import Following, following
from bench.open_loop import around, open_loop
from bench.publisher import STEP_BACK
from bench.rivals import Rival
from bench.rivals.launch import triton_reload
from bench.serving import ROOT, python
from bench.triton_publisher import TritonPublisher

REPLICAS = 2
# Well below what two replicas on two cores can do: the load must not be what is measured.
RATE = 200.0
BIN_S = 0.1
# Versions at least that are published to nobody.
UNFOLLOWED = 8


@dataclass(slots=True)
class Phase:
    """Latencies from the intended time, and when each answer came. `versions`: that answered."""

    sent: int = 0
    failed: list[str] = field(default_factory=list)
    mixed: int = 0
    misnamed: int = 0
    seconds: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    versions: set[str] = field(default_factory=set)

    def figures(self) -> dict[str, float]:
        p50, p99 = np.percentile(self.seconds, [50, 99]) * 1e3
        gaps = np.diff(np.sort(self.ended))
        return {
            "requests": self.sent,
            "failed": len(self.failed),
            "mixed": self.mixed,
            "misnamed": self.misnamed,
            "p50_ms": float(p50),
            "p99_ms": float(p99),
            "max_ms": max(self.seconds) * 1e3,
            "max_gap_ms": float(gaps.max()) * 1e3,
        }

    def judge(self, version: str, first: float, last: float) -> None:
        """The version that is said to have answered, and the stamps of the weights that have."""
        self.versions.add(version)
        self.mixed += first != last
        self.misnamed += int(version.partition("-")[0]) != int(first)


@dataclass(slots=True)
class Found:
    """`unfollowed`: while a publisher did the same work, and no replica loaded it. `pauses_us`: of
    each swap but the replicas' first. `published`: seconds since it began."""

    before: Phase
    during: Phase
    unfollowed: Phase
    began: float
    pauses_us: list[float]
    replica_mb: list[float]
    published: list[float]

    @property
    def versions(self) -> set[str]:
        return self.before.versions | self.during.versions

    def bins(self) -> list[tuple[float, float, float]]:
        """(seconds since it began, p50, most in ms) of the answers in each BIN_S."""
        ended = np.array(self.during.ended) - self.began
        seconds = np.array(self.during.seconds) * 1e3
        places = (ended / BIN_S).astype(int)
        return [
            (
                float(place * BIN_S),
                float(np.median(seconds[places == place])),
                float(seconds[places == place].max()),
            )
            for place in np.unique(places)
        ]


def measure(
    folder: Path,
    seed: int,
    *,
    layers: int,
    publishes: int,
    every_s: float,
    quiet_s: float,
    published: Callable[[], None],
) -> Found:
    """Before, while versions are published, and while nobody follows them. Raises ServerFailed."""
    with following(folder, str(layers), seed, replicas=REPLICAS) as served:
        found = asyncio.run(_measure(served, publishes, every_s, quiet_s, published))
        pauses = [float(text) for text in re.findall(r'"pause_us":([0-9.]+)', served.log)]
    found.pauses_us = pauses[REPLICAS:]
    return found


async def _measure(
    served: Following,
    publishes: int,
    every_s: float,
    quiet_s: float,
    published: Callable[[], None],
) -> Found:
    memory, times, loop = list[float](), list[float](), asyncio.get_running_loop()
    began = 0.0

    def note(version: str) -> None:
        times.append(loop.time() - began)
        if (megabytes := served.megabytes()) is not None:
            memory.append(megabytes)
        published()

    async def publish() -> None:
        nonlocal began
        began = loop.time()
        await served.publish(publishes, every_s, note)

    async with _session() as session:
        url = f"{served.clients}/v2/models/{served.model}/infer"
        before, during = await around(lambda until: _load(session, url, until), publish, quiet_s)
        alone = served.publish_unfollowed(max(publishes // 4, UNFOLLOWED), every_s)
        unfollowed = await _load(session, url, alone)
    return Found(before, during, unfollowed, began, [], memory, times)


def measure_triton(
    folder: Path,
    rival: Rival,
    seed: int,
    *,
    layers: int,
    publishes: int,
    every_s: float,
    quiet_s: float,
) -> tuple[Phase, Phase]:
    """The same with explicit loads of the same model. Raises ServerFailed, OSError."""
    folder.mkdir()
    contender = triton_reload(folder, rival)
    with contender.server:
        contender.ready()
        first = TritonPublisher(folder / "repository", layers, seed)
        first.write()
        first.load(contender.base)
        arguments = [contender.base, str(folder / "repository"), str(layers)]
        arguments += [str(seed), str(publishes), str(every_s)]
        return asyncio.run(_measure_triton(contender.base, arguments, quiet_s))


async def _measure_triton(
    url: str, publisher: Sequence[str], quiet_s: float
) -> tuple[Phase, Phase]:
    async with _session() as session:
        infer = f"{url}/v2/models/reload/infer"
        return await around(
            lambda until: _load(session, infer, until), lambda: _publish_triton(publisher), quiet_s
        )


async def _publish_triton(publisher: Sequence[str]) -> None:
    process = await asyncio.create_subprocess_exec(
        *STEP_BACK,
        *python("-m", "bench.triton_publisher", *publisher),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    if await process.wait():
        raise RuntimeError(f"Triton's publisher ended with status {process.returncode}")


def _session() -> aiohttp.ClientSession:
    timeout, connector = aiohttp.ClientTimeout(total=30), aiohttp.TCPConnector(limit=0)
    return aiohttp.ClientSession(connector=connector, timeout=timeout)


async def _load(session: aiohttp.ClientSession, url: str, until: Awaitable[None]) -> Phase:
    phase, loop = Phase(), asyncio.get_running_loop()
    body, headers = struct.pack("<8f", *([1.0] * 8)), {"inference-header-content-length": "0"}

    async def one(intended: float) -> None:
        try:
            async with session.post(url, data=body, headers=headers) as reply:
                data = await reply.read()
                if reply.status != 200:
                    raise RuntimeError(f"{reply.status} {data[:120]!r}")
        except Exception as error:
            phase.failed.append(repr(error))
            return
        now = loop.time()
        phase.seconds.append(now - intended)
        phase.ended.append(now)
        phase.judge(*_told(reply, data))

    phase.sent = await open_loop(RATE, one, until)
    return phase


def _told(reply: aiohttp.ClientResponse, data: bytes) -> tuple[str, float, float]:
    first, _, last = struct.unpack("<3f", data[-12:])
    version = reply.headers.get("x-model-version")
    if version is None:  # Triton says it in the answer's head
        head = json.loads(data[: int(reply.headers["inference-header-content-length"])])
        version = str(head["model_version"])
    return version, first, last
