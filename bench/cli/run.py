"""`bench run`: one scenario, its table, its goals and its JSON line."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.build import build
from bench.models.device import BadCurve
from bench.record import Record
from bench.rivals import ALL, NoSuchRival
from bench.scenarios import MODULES, Options, find
from bench.series import MeasureFailed
from bench.serving import ServerFailed


def main(args: argparse.Namespace) -> int:
    if args.scenario not in MODULES:
        print(
            f"bench run: no scenario {args.scenario!r}; there are {_all(MODULES)}", file=sys.stderr
        )
        return 2
    rivals = None if args.rivals is None else tuple(filter(None, args.rivals.split(",")))
    for name in rivals or ():
        if name not in ALL:
            print(f"bench run: no rival {name!r}; there are {_all(ALL)}", file=sys.stderr)
            return 2
    # A terminated run stops its servers too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    # The table is for people; the line alone goes to standard output's end.
    console = Console(highlight=False)
    how = build(args.scenario, console, interpreted=args.interpreted)
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        options = Options(
            quick=args.quick,
            seed=args.seed,
            rivals=rivals,
            folder=Path(folder),
            console=console,
        )
        try:
            record = find(args.scenario).run(options)
            record = replace(
                record,
                detail={"quick": args.quick, **record.detail},
                versions={**record.versions, "gateway": how},
            )
        except (NoSuchRival, BadCurve) as error:
            print(f"bench run: {error}", file=sys.stderr)
            return 2
        except (MeasureFailed, ServerFailed) as error:
            print(f"bench run {args.scenario}: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print(f"bench run {args.scenario}: interrupted, nothing reported", file=sys.stderr)
            return 128 + signal.SIGINT
    show(record, console)
    line = record.line()
    if args.json is not None:
        args.json.write_text(line + "\n")
    print(line, flush=True)
    return 0 if record.ours is not None else 1


def show(record: Record, console: Console) -> None:
    for name, figure in record.rivals.items():
        if isinstance(figure, str):
            console.print(f"{name}: {figure}", style="yellow", markup=False)
    if record.goals:
        table = Table(title="beside the targets", title_justify="left")
        for column in ("figure", "found", "wanted", ""):
            table.add_column(column, justify="right" if column == "found" else "left")
        for goal in record.goals:
            mark = "[green]✓" if goal.met else "[red]✗"
            table.add_row(goal.what, goal.found, goal.wanted, mark)
        console.print(table)


def _all(names: Iterable[str]) -> str:
    return ", ".join(names)
