"""`bench compare`: two JSON lines of the same scenario, side by side."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.compare import CannotCompare, Row, compare, differences


def main(args: argparse.Namespace) -> int:
    console = Console(highlight=False)
    try:
        a, b = read(args.a), read(args.b)
        rows = compare(a, b)
        others = differences(a, b)
    except CannotCompare as error:
        print(f"bench compare: {error}", file=sys.stderr)
        return 2
    title = f"{a['scenario']}: {b['commit']} against {a['commit']} (above 1: better)"
    console.print(title, style="bold", markup=False)
    for metric in dict.fromkeys(row.metric for row in rows):
        console.print(_table(metric, [row for row in rows if row.metric == metric]))
    for difference in others:
        console.print(f"also different: {difference}", style="yellow", markup=False)
    return 0


def _table(metric: str, rows: list[Row]) -> Table:
    table = Table(title=metric, title_justify="left")
    table.add_column("server")
    for column in ("ratio", "95 % interval", "pairs"):
        table.add_column(column, justify="right")
    table.add_column("")
    for row in rows:
        ratio = row.ratio
        table.add_row(
            row.who,
            f"{ratio.value:.3f}",
            f"{ratio.low:.3f} – {ratio.high:.3f}" if ratio.enough else "",
            str(ratio.pairs),
            ratio.verdict,
        )
    return table


def read(path: Path) -> Any:
    """The record in the file's last line. Raises CannotCompare."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        found = json.loads([line for line in lines if line.strip()][-1])
    except (OSError, ValueError, IndexError) as error:
        raise CannotCompare(f"{path}: {error}") from error
    if not isinstance(found, dict) or not {"scenario", "hardware", "versions"} <= found.keys():
        raise CannotCompare(f"{path}: its last line is no record of `bench run`")
    return found
