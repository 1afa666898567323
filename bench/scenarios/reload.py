"""`reload`: a new version again and again, under an open load (target 9).

Two replicas follow a channel while requests come at intended times: first for a model of tensors
(`reload_tensors`, and Triton beside it where it was asked for), then for streams of tokens
(`reload_streams`). Owns how much of it there is, the goals and what is shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from bench.models.reload import Stamped
from bench.record import Goal, Record
from bench.rivals import RIVALS, chosen
from bench.scenarios import Options, reload_streams, reload_tensors, scenario
from bench.serving import ServerFailed


class Size(NamedTuple):
    """How much of it there is. A version takes less than `every_s` to be loaded, to pass its
    probation at one replica and to be taken by the other."""

    layers: int
    publishes: int
    streamed: int
    every_s: float
    quiet_s: float


# All but the starts of the servers: 255 s, and 115 s where Triton was asked for.
FULL = Size(layers=8, publishes=100, streamed=100, every_s=1.0, quiet_s=14.0)
QUICK = Size(layers=4, publishes=10, streamed=5, every_s=0.8, quiet_s=3.0)


@scenario("reload", "publish again and again under an open load: what fails, mixes, or waits")
def run(options: Options) -> Record:
    size, console = QUICK if options.quick else FULL, options.console
    with _progress(console, "tensors", size.publishes) as published:
        found = reload_tensors.measure(
            options.folder / "reload",
            options.seed,
            layers=size.layers,
            publishes=size.publishes,
            every_s=size.every_s,
            quiet_s=size.quiet_s,
            published=published,
        )
    before, during = found.before.figures(), found.during.figures()
    unfollowed = found.unfollowed.figures()
    phases = {"before": before, "during": during, "nobody follows": unfollowed}
    console.print(_table(phases))
    with _progress(console, "streams", size.streamed) as published:
        quiet, moved = reload_streams.measure(
            options.folder / "streams",
            options.seed,
            publishes=size.streamed,
            every_s=size.every_s,
            quiet_s=size.quiet_s,
            published=published,
        )
    streams = {"before": quiet.figures(), "during": moved.figures()}
    console.print(_table({f"streams {name}": told for name, told in streams.items()}))
    rivals, rival_detail = _beside(options, size)
    streamed = len(quiet.versions | moved.versions)
    pause, copy_us = max(found.pauses_us, default=None), _copy_us(size.layers)
    ratio = during["p99_ms"] / before["p99_ms"]
    goals = [
        Goal.most("failed requests", _sum("failed", before, during, unfollowed), 0, ""),
        Goal.most("answers of two versions", _sum("mixed", during) + during["misnamed"], 0, ""),
        Goal.most("p99 during against before", ratio, 1.5, "×"),
        Goal.least("versions that were served", len(found.versions), size.publishes // 2, ""),
        *_stream_goals(streams, streamed, size.streamed),
        Goal.most("memory, last against second quarter", _growth(found.replica_mb), 1.1, "×"),
    ]
    if pause is not None:
        goals.append(Goal.most("swap pause against a copy", pause / copy_us, 2, "×"))
    pauses = {"count": len(found.pauses_us), "max": pause, "median": _median(found.pauses_us)}
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
            "unfollowed": unfollowed,
            "publishes": size.publishes,
            "versions_served": len(found.versions),
            "model_mb": sum(p.numel() * 4 for p in Stamped(size.layers).parameters()) / 1e6,
            "rate": reload_tensors.RATE,
            "swap_pause_us": pauses,
            "copy_us": copy_us,
            "replica_mb": found.replica_mb,
            "timeline": {"bins": found.bins(), "published": found.published},
            "streams": streams | {"versions": streamed},
            "streams_errors": sorted(set(quiet.failed + moved.failed))[:5],
            "errors": sorted(set(found.before.failed + found.during.failed))[:5],
        },
    )


def _beside(options: Options, size: Size) -> tuple[dict[str, float | str], dict[str, Any]]:
    """Triton, with explicit loads of the same model under the same load, where it was asked for."""
    if "triton" not in chosen(options.rivals or (), quick=options.quick):
        return {}, {}
    rival = RIVALS["triton"]
    if (missing := rival.missing) is not None:
        return {"triton": f"unavailable: {missing}"}, {}
    try:
        with _progress(options.console, "triton", size.publishes):
            quiet, moved = reload_tensors.measure_triton(
                options.folder / "triton",
                rival,
                options.seed,
                layers=size.layers,
                publishes=size.publishes,
                every_s=size.every_s,
                quiet_s=size.quiet_s,
            )
    except (ServerFailed, OSError) as error:
        return {"triton": f"unavailable: {error}"}, {}
    before, during = quiet.figures(), moved.figures()
    options.console.print(_table({"triton before": before, "triton during": during}))
    figures = {"before": before, "during": during, "errors": sorted(set(moved.failed))[:5]}
    return {"triton": during["p99_ms"]}, {"triton": figures}


@contextmanager
def _progress(console: Console, what: str, publishes: int) -> Iterator[Callable[[], None]]:
    """Call it with each version that is published: where somebody watches, the line counts; in a
    log, there is one for every quarter."""
    done, began = 0, time.monotonic()
    with console.status(f"{what}: quiet ...") as status:

        def published() -> None:
            nonlocal done
            done += 1
            text = f"{what}: {done} of {publishes} versions"
            status.update(text)
            if not console.is_terminal and done * 4 // publishes > (done - 1) * 4 // publishes:
                console.print(f"{text}, {time.monotonic() - began:.0f} s")

        console.print(f"{what}: {publishes} versions after a quiet time")
        yield published


def _copy_us(layers: int) -> float:
    """The physical time of one copy of the model in memory, the best of some."""
    source = torch.cat([p.detach().reshape(-1) for p in Stamped(layers).parameters()])
    target, times = torch.empty_like(source), []
    for _ in range(7):
        began = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - began)
    return min(times) * 1e6


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
