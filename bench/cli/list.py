"""`bench list`: what can be run, and which rivals are there."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from bench.rivals import ALL
from bench.scenarios import MODULES, find


def main(args: argparse.Namespace) -> int:
    console = Console(highlight=False)
    table = Table(
        "name",
        "what it measures",
        title="scenarios: python -m bench run NAME",
        title_justify="left",
    )
    for name in MODULES:
        table.add_row(name, find(name).summary)
    console.print(table)
    table = Table(
        "name",
        "version",
        "MB",
        "",
        title="rivals: python -m bench rivals install NAME",
        title_justify="left",
    )
    for rival in ALL.values():
        table.add_row(
            rival.name, rival.version(), f"{rival.megabytes or ''}", rival.missing or "installed"
        )
    console.print(table)
    console.print("simulations: python -m bench sim batching, python -m bench sim routing")
    return 0
