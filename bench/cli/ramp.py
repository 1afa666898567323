"""`bench load --ramp`: an open loop at one rate after another, until the knee is passed."""

from __future__ import annotations

import json
import signal
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
    """Ctrl-C ends it with what was found until then. Raises LoadFailed, KeyboardInterrupt."""

    def run(rate: float) -> LoadReport:
        return generator.run(replace(spec, rate=rate), processes=processes)

    found: list[Point] = []
    console = Console(highlight=False, stderr=True)
    with Live(_table(found), console=console, auto_refresh=False) as live:

        def told(point: Point) -> None:
            found.append(point)
            live.update(_table(found), refresh=True)

        interrupted = measure(rates(asked), run, told)
    if not console.is_terminal:
        console.print()  # after the table, which ends no line
    if interrupted and not found:
        raise KeyboardInterrupt
    best = knee(found)
    if as_json:
        points = [point.to_json() for point in found]
        line: dict[str, Any] = {"url": spec.url, "points": points, "knee": best and best.rate}
        line["interrupted"] = interrupted
        print(json.dumps(rounded(line)))
    elif best is None:
        print("no rate was answered in time: begin lower")
    else:
        more = "" if passed(found) else ", and it was not passed: ramp further"
        print(f"knee: {number(best.rate)}/s with a p99 of {number(best.p99 * 1e3)} ms{more}")
    limits = {point.limit for point in found if point.limit is not None}
    for limit in sorted(limits):
        print(f"the generator was the limit: {limit}", file=sys.stderr)
    if interrupted:
        return 128 + signal.SIGINT
    return 0 if best is not None else 1


def measure(
    steps: list[float], run: Callable[[float], LoadReport], told: Callable[[Point], None]
) -> bool:
    """One rate after another, two past the knee. Whether it was interrupted: a rate that was not
    offered for its whole time is none."""
    found: list[Point] = []
    for rate in steps:
        try:
            report = run(rate)
        except KeyboardInterrupt:
            return True
        if report.interrupted:
            return True
        point = Point.of(rate, report)
        found.append(point)
        told(point)
        if passed(found):
            break
    return False


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
