"""`reload`: a new version again and again, under an open load (target 9).

Two replicas follow a channel; requests have intended times, and every answer tells which weights
made it at both ends of the model; then the same with streams of tokens (`reload_streams`). Counted:
requests that failed, answers that mix versions, answers that name another version than made them.
Measured: latency before and while versions are published, gaps between answers, the swap's pause on
the device thread, memory after many versions.
"""

from __future__ import annotations

import asyncio
import json
import re
import struct
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np
import torch
from rich.table import Table

from bench.following import Following, following
from bench.models.reload import Stamped
from bench.publisher import STEP_BACK
from bench.record import Goal, Record
from bench.rivals import RIVALS, chosen
from bench.rivals.launch import triton_reload
from bench.scenarios import Options, reload_streams, scenario
from bench.serving import ROOT, ServerFailed, python
from bench.triton_publisher import TritonPublisher

REPLICAS = 2
# Well below what two replicas on two cores can do: the load must not be what is measured.
RATE = 200.0
BIN_S = 0.1


@dataclass(slots=True)
class Phase:
    """Latencies from the intended time, and when each answer came."""

    sent: int = 0
    failed: list[str] = field(default_factory=list)
    mixed: int = 0
    misnamed: int = 0
    seconds: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)

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


@scenario("reload", "publish again and again under an open load: what fails, mixes, or waits")
def run(options: Options) -> Record:
    publishes = 10 if options.quick else 100
    every_s = 1.0 if options.quick else 1.5
    layers = 4 if options.quick else 8
    quiet_s = 4.0 if options.quick else 20.0
    with (
        following(
            options.folder / "reload", str(layers), options.seed, replicas=REPLICAS
        ) as served,
        options.console.status(f"{publishes} versions ..."),
    ):
        found = asyncio.run(_measure(served, publishes, every_s, quiet_s))
        pauses = [float(text) for text in re.findall(r'"pause_us":([0-9.]+)', served.log)]
    spoken = publishes // 2 if options.quick else publishes
    with options.console.status(f"streams, {spoken} versions ..."):
        quiet, moved = reload_streams.measure(
            options.folder / "streams",
            options.seed,
            publishes=spoken,
            every_s=every_s,
            quiet_s=quiet_s,
        )
    before, during = found["before"].figures(), found["during"].figures()
    rivals, rival_detail = _beside(options, layers, publishes, every_s, quiet_s)
    copy_us = _copy_us(layers)
    options.console.print(_table({"before": before, "during": during}))
    streams = {"before": quiet.figures(), "during": moved.figures()}
    options.console.print(_table({f"streams {name}": told for name, told in streams.items()}))
    pause = max(pauses[REPLICAS:], default=None)
    memory: list[float] = found["replica_mb"]
    ratio = during["p99_ms"] / before["p99_ms"]
    goals = [
        Goal.most("failed requests", _sum("failed", before, during), 0, ""),
        Goal.most("answers of two versions", _sum("mixed", during) + during["misnamed"], 0, ""),
        Goal.most("p99 during against before", ratio, 1.5, "×"),
        Goal.least("versions that were served", found["served"], publishes // 2, ""),
        *_stream_goals(streams, len(quiet.versions | moved.versions), spoken),
        Goal.most("memory, last against second quarter", _growth(memory), 1.1, "×"),
    ]
    if pause is not None:
        goals.append(Goal.most("swap pause against a copy", pause / copy_us, 2, "×"))
    return Record(
        scenario="reload",
        metric="p99 while versions are published, open loop",
        unit="ms",
        higher_is_better=False,
        seed=options.seed,
        ours=during["p99_ms"],
        floor=before["p99_ms"],
        rivals=rivals,
        goals=goals,
        detail={
            **rival_detail,
            "before": before,
            "during": during,
            "publishes": publishes,
            "versions_served": found["served"],
            "model_mb": sum(p.numel() * 4 for p in Stamped(layers).parameters()) / 1e6,
            "rate": RATE,
            "swap_pause_us": {"count": len(pauses), "max": pause, "median": _median(pauses)},
            "copy_us": copy_us,
            "replica_mb": memory,
            "timeline": found["timeline"],
            "streams": streams | {"versions": len(quiet.versions | moved.versions)},
            "streams_errors": sorted(set(quiet.failed + moved.failed))[:5],
            "errors": sorted(set(found["before"].failed + found["during"].failed))[:5],
        },
    )


def _beside(
    options: Options, layers: int, publishes: int, every_s: float, quiet_s: float
) -> tuple[dict[str, float | str], dict[str, Any]]:
    """Triton, with explicit loads of the same model under the same load, where it was asked for."""
    if "triton" not in chosen(options.rivals or (), quick=options.quick):
        return {}, {}
    rival, folder = RIVALS["triton"], options.folder / "triton"
    folder.mkdir()
    if (missing := rival.missing) is not None:
        return {"triton": f"unavailable: {missing}"}, {}
    try:
        contender = triton_reload(folder, rival)
        with contender.server:
            contender.ready()
            first = TritonPublisher(folder / "repository", layers, options.seed)
            first.write()
            first.load(contender.base)
            arguments = [contender.base, str(folder / "repository"), str(layers)]
            arguments += [str(options.seed), str(publishes), str(every_s)]
            with options.console.status(f"triton: {publishes} versions ..."):
                found = asyncio.run(_measure_triton(contender.base, arguments, quiet_s))
    except (ServerFailed, OSError) as error:
        return {"triton": f"unavailable: {error}"}, {}
    before, during = found["before"].figures(), found["during"].figures()
    options.console.print(_table({"triton before": before, "triton during": during}))
    figures = {
        "before": before,
        "during": during,
        "errors": sorted(set(found["during"].failed))[:5],
    }
    return {"triton": during["p99_ms"]}, {"triton": figures}


async def _measure_triton(url: str, publisher: Sequence[str], quiet_s: float) -> dict[str, Phase]:
    timeout, connector = aiohttp.ClientTimeout(total=30), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        infer, seen = f"{url}/v2/models/reload/infer", set[str]()
        await _load(session, infer, asyncio.create_task(asyncio.sleep(1.0)), set())  # warm-up
        before = await _load(session, infer, asyncio.create_task(asyncio.sleep(quiet_s)), seen)
        publishing = asyncio.create_task(_publish_triton(publisher))
        return {"before": before, "during": await _load(session, infer, publishing, seen)}


async def _publish_triton(publisher: Sequence[str]) -> None:
    process = await asyncio.create_subprocess_exec(
        *STEP_BACK,
        *python("-m", "bench.triton_publisher", *publisher),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    if await process.wait():
        raise RuntimeError(f"Triton's publisher ended with status {process.returncode}")


def _copy_us(layers: int) -> float:
    """The physical time of one copy of the model in memory, the best of some."""
    source = torch.cat([p.detach().reshape(-1) for p in Stamped(layers).parameters()])
    target, times = torch.empty_like(source), []
    for _ in range(7):
        began = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - began)
    return min(times) * 1e6


async def _measure(
    served: Following, publishes: int, every_s: float, quiet_s: float
) -> dict[str, Any]:
    timeout = aiohttp.ClientTimeout(total=30)
    connector = aiohttp.TCPConnector(limit=0)
    memory: list[float] = []
    published: list[float] = []
    seen: set[str] = set()
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        url, loop = f"{served.clients}/v2/models/{served.model}/infer", asyncio.get_running_loop()
        await _load(session, url, asyncio.create_task(asyncio.sleep(1.0)), set())  # warm-up
        before = await _load(session, url, asyncio.create_task(asyncio.sleep(quiet_s)), seen)

        def note(version: str) -> None:
            published.append(loop.time())
            memory.append(served.megabytes())

        began = loop.time()
        publishing = asyncio.create_task(served.publish(publishes, every_s, note))
        during = await _load(session, url, publishing, seen)
    timeline = {"bins": _bins(during, began), "published": [at - began for at in published]}
    found = {"before": before, "during": during, "replica_mb": memory, "served": len(seen)}
    return {**found, "timeline": timeline}


def _bins(phase: Phase, began: float) -> list[tuple[float, float, float]]:
    """(seconds since `began`, p50, most in ms) of the answers in each BIN_S."""
    ended, seconds = np.array(phase.ended) - began, np.array(phase.seconds) * 1e3
    places = (ended / BIN_S).astype(int)
    return [
        (
            float(place * BIN_S),
            float(np.median(seconds[places == place])),
            float(seconds[places == place].max()),
        )
        for place in np.unique(places)
    ]


async def _load(
    session: aiohttp.ClientSession, url: str, until: asyncio.Task[None], seen: set[str]
) -> Phase:
    """An open loop at `RATE` until the task ends."""
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
        version, first, last = _told(reply, data)
        seen.add(version)
        phase.mixed += first != last
        phase.misnamed += int(version.partition("-")[0]) != int(first)

    async with asyncio.TaskGroup() as group:
        due = loop.time()
        while not until.done():
            group.create_task(one(due))
            phase.sent += 1
            due += 1 / RATE
            await asyncio.sleep(max(0.0, due - loop.time()))
    await until
    return phase


def _told(reply: aiohttp.ClientResponse, data: bytes) -> tuple[str, float, float]:
    """The version that is said to have answered, and the stamps of the weights that have."""
    first, _, last = struct.unpack("<3f", data[-12:])
    version = reply.headers.get("x-model-version")
    if version is None:  # Triton says it in the answer's head
        head = json.loads(data[: int(reply.headers["inference-header-content-length"])])
        version = str(head["model_version"])
    return version, first, last


def _stream_goals(streams: dict[str, dict[str, float]], served: int, publishes: int) -> list[Goal]:
    before, during = streams["before"], streams["during"]
    ratio = during["gap_p99_ms"] / before["gap_p99_ms"]
    return [
        Goal.most("failed streams", _sum("failed", before, during), 0, ""),
        Goal.most("streams of two versions", _sum("mixed", during) + during["misnamed"], 0, ""),
        Goal.most("p99 of gaps during against before", ratio, 1.5, "×"),
        Goal.least("versions that were streamed", served, publishes // 2, ""),
    ]


def _sum(name: str, *phases: dict[str, float]) -> float:
    return sum(phase[name] for phase in phases)


def _growth(memory: Sequence[float]) -> float:
    """The typical memory of the last quarter against that of the second: in the first, room is
    made for two versions at a time."""
    quarter = max(len(memory) // 4, 1)
    return float(np.median(memory[-quarter:]) / np.median(memory[quarter : 2 * quarter]))


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None


def _table(phases: dict[str, dict[str, float]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("reload")
    for phase in phases:
        table.add_column(phase, justify="right")
    for name in next(iter(phases.values())):
        table.add_row(name, *(f"{figures[name]:.4g}" for figures in phases.values()))
    return table
