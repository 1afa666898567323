"""Streams of tokens across reloads: the part of `reload` that serves a language model.

Streams begin at intended times and last longer than a swap. Every token names the weights of its
cache and of its head (`bench.models.speaker`). Counted: streams that failed, that are of two
versions, that name another version than made them. Measured: the gaps between a stream's events.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from bench.following import Following, following
from bench.models.speaker import VERSIONS
from bench.open_loop import around, open_loop
from bench.publisher import TEXT

REPLICAS = 2
# Well below what two replicas on two cores can do, and some streams are under way at any time.
RATE, TOKENS = 4.0, 256
PROMPT = "Which weights are you made of? "


@dataclass(slots=True)
class Streams:
    """What became of them. `versions`: those that the answers named. Seconds."""

    begun: int = 0
    failed: list[str] = field(default_factory=list)
    mixed: int = 0
    misnamed: int = 0
    tokens: int = 0
    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    versions: set[str] = field(default_factory=set)

    def figures(self) -> dict[str, float]:
        p50, p99 = np.percentile(self.gaps, [50, 99]) * 1e3
        return {
            "streams": self.begun,
            "failed": len(self.failed),
            "mixed": self.mixed,
            "misnamed": self.misnamed,
            "first_p50_ms": float(np.median(self.first)) * 1e3,
            "gap_p50_ms": float(p50),
            "gap_p99_ms": float(p99),
            "gap_max_ms": max(self.gaps) * 1e3,
        }

    def judge(self, said: list[str], named: set[str]) -> None:
        """One stream's words, and the versions that its events named."""
        self.tokens += len(said)
        self.versions |= named
        stamps = {half for word in set(said) for half in word.split(".")}
        if len(stamps) != 1 or len(named) != 1:
            self.mixed += 1
        else:
            (stamp,), (version,) = stamps, named
            self.misnamed += int(version.partition("-")[0]) % VERSIONS != int(stamp)


def measure(
    folder: Path,
    seed: int,
    *,
    publishes: int,
    every_s: float,
    quiet_s: float,
    published: Callable[[], None],
) -> tuple[Streams, Streams]:
    """Before and while versions are published. Raises ServerFailed."""
    with following(folder, TEXT, seed, replicas=REPLICAS) as served:
        return asyncio.run(_measure(served, publishes, every_s, quiet_s, published))


async def _measure(
    served: Following,
    publishes: int,
    every_s: float,
    quiet_s: float,
    published: Callable[[], None],
) -> tuple[Streams, Streams]:
    timeout, connector = aiohttp.ClientTimeout(total=60), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        return await around(
            lambda until: _load(session, served, until),
            lambda: served.publish(publishes, every_s, lambda _: published()),
            quiet_s,
        )


async def _load(
    session: aiohttp.ClientSession, served: Following, until: Awaitable[None]
) -> Streams:
    """Every stream is read to its end."""
    found = Streams()

    async def one(intended: float) -> None:
        try:
            await _stream(session, served, found, intended)
        except Exception as error:
            found.failed.append(repr(error))

    found.begun = await open_loop(RATE, one, until)
    return found


async def _stream(
    session: aiohttp.ClientSession, served: Following, found: Streams, intended: float
) -> None:
    asked = {"model": served.model, "prompt": PROMPT, "stream": True, "max_tokens": TOKENS}
    asked |= {"temperature": 0, "ignore_eos": True}
    loop, times = asyncio.get_running_loop(), list[float]()
    text, named, finish = "", set[str](), None
    async with session.post(f"{served.clients}/v1/completions", json=asked) as reply:
        if reply.status != 200:
            raise RuntimeError(f"{reply.status} {(await reply.text())[:200]}")
        named.add(reply.headers["x-model-version"])
        async for line in reply.content:
            if not line.startswith(b"data: {"):
                continue
            event: dict[str, Any] = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(str(event["error"])[:200])
            times.append(loop.time())
            named.add(event["system_fingerprint"])
            text += event["choices"][0]["text"]
            finish = finish or event["choices"][0]["finish_reason"]
    said = text.split()
    if finish != "length" or len(said) != TOKENS:
        raise RuntimeError(f"the stream ended by {finish} after {len(said)} of {TOKENS} tokens")
    found.first.append(times[0] - intended)
    found.gaps += np.diff(times).tolist()
    found.judge(said, named)
