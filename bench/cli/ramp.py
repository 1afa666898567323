"""`bench load --ramp`: an open loop at one rate after another, until the knee is passed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from bench.load import generator
from bench.load.knee import Point, knee, passed, rates
from bench.load.spec import LoadReport, LoadSpec
from bench.record import rounded
from bench.tables import number


def climb(spec: LoadSpec, asked: str, processes: int, *, as_json: bool) -> int:
    """Raises ValueError, LoadFailed."""
    if spec.rate is not None or spec.trace is not None:
        raise ValueError("--ramp has its own rates: leave --rate and --trace out")

    def run(rate: float) -> LoadReport:
        return generator.run(replace(spec, rate=rate), processes=processes)

    found: list[Point] = []
    console = Console(highlight=False, stderr=True)
    with Live(_table(found), console=console, auto_refresh=False) as live:

        def told(point: Point) -> None:
            found.append(point)
            live.update(_table(found), refresh=True)

        measure(rates(asked), run, told)
    best = knee(found)
    if as_json:
        points = [point.to_json() for point in found]
        line: dict[str, Any] = {"url": spec.url, "points": points, "knee": best and best.rate}
        print(json.dumps(rounded(line)))
    elif best is None:
        print("no rate was answered in time: begin lower")
    else:
        more = "" if passed(found) else ", and it was not passed: ramp further"
        print(f"knee: {number(best.rate)}/s with a p99 of {number(best.p99 * 1e3)} ms{more}")
    limits = {point.limit for point in found if point.limit is not None}
    for limit in sorted(limits):
        print(f"the generator was the limit: {limit}", file=sys.stderr)
    return 0 if best is not None else 1


def measure(
    steps: list[float], run: Callable[[float], LoadReport], told: Callable[[Point], None]
) -> None:
    """One rate after another, two past the knee."""
    found: list[Point] = []
    for rate in steps:
        point = Point.of(rate, run(rate))
        found.append(point)
        told(point)
        if passed(found):
            return


def _table(points: list[Point]) -> Table:
    table = Table()
    for column in ("offered/s", "answered/s", "p50", "p99", "failed", ""):
        table.add_column(column, justify="right")
    for point in points:
        table.add_row(
            number(point.rate),
            number(point.answered),
            f"{number(point.p50 * 1e3)} ms",
            f"{number(point.p99 * 1e3)} ms",
            f"{point.failed:,}",
            "generator" if point.limit else "",
        )
    return table
