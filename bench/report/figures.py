"""What a record says, as rows and columns: for the page and for the documents alike.

Owns the choice of figures: medians of each metric and server, ours first, what each cost, targets
with the reason where one is missed. Invariant: what did not run is told with its reason.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.tables import number

Record = Mapping[str, Any]
# Of a scenario: why a target is missed, by the target's name.
Reasons = Mapping[str, str]
OURS, FLOOR = "penstock", "floor"


@dataclass(frozen=True, slots=True)
class Table:
    """`rows`: what `corner` says, and its cells; `absent`: who did not run, and why."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    absent: Mapping[str, str]
    corner: str = "server"
    title: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    what: str
    found: str
    wanted: str
    met: bool
    reason: str


def command(record: Record) -> str:
    """What makes the record again."""
    scenario = str(record["scenario"])
    what = f"sim {scenario[4:]}" if scenario.startswith("sim-") else f"run {scenario}"
    return f"python -m bench {what}" + (" --quick" if record["detail"].get("quick") else "")


def table(record: Record) -> Table:
    """Of each repeated metric, or of the record's own where none was repeated."""
    series = record["detail"].get("repetitions") or _own(record)
    cpu = record["detail"].get("cpu_us_per_request", {})
    memory = record["detail"].get("rss_mb", {})
    columns = [", ".join(filter(None, (metric, one["unit"]))) for metric, one in series.items()]
    columns += ["CPU per request, µs"] * bool(cpu) + ["memory, MB"] * bool(memory)
    rows = []
    for who in _ordered(series):
        cells = [_median(one["values"].get(who)) for one in series.values()]
        cells += [number(cpu[who]) if who in cpu else ""] * bool(cpu)
        cells += [number(memory[who]) if who in memory else ""] * bool(memory)
        rows.append((shown_name(who), cells))
    return Table(columns, rows, absent(record))


def absent(record: Record) -> dict[str, str]:
    return {who: text for who, text in record["rivals"].items() if isinstance(text, str)}


def shown_name(who: str) -> str:
    return "Penstock" + who.removeprefix(OURS) if who.startswith(OURS) else who


def _own(record: Record) -> dict[str, Any]:
    figures = {OURS: record["ours"], FLOOR: record["floor"], **record["rivals"]}
    values = {who: [figure] for who, figure in figures.items() if isinstance(figure, int | float)}
    return {record["metric"]: {"unit": record["unit"], "values": values}}


def _ordered(series: Mapping[str, Any]) -> list[str]:
    """Ours, then the others as they were measured, the floor last."""
    names = dict.fromkeys(who for one in series.values() for who in one["values"])
    return sorted(names, key=lambda who: (who == FLOOR, not who.startswith(OURS)))


def _median(values: Sequence[float] | None) -> str:
    return number(statistics.median(values)) if values else ""


def targets(record: Record, reasons: Reasons) -> list[Target]:
    return [
        Target(
            goal["what"],
            goal["found"].strip(),
            goal["wanted"].strip(),
            goal["met"],
            "" if goal["met"] else reasons.get(goal["what"], ""),
        )
        for goal in record["detail"].get("goals", [])
    ]


def place(record: Record) -> str:
    """Where and when it was taken: what a reader needs to compare it with another one."""
    hardware = record["hardware"]
    parts = [f"commit {record['commit']}", f"seed {record['seed']}"]
    parts += [f"{hardware['cores']} cores of {hardware['cpu']}"] if "cpu" in hardware else []
    parts += [str(hardware["gpu"])] if "gpu" in hardware else []
    parts += [f"load {hardware['load'][0]:g} at its end"] if "load" in hardware else []
    parts += [f"{name} {found}" for name, found in record["versions"].items() if name != "penstock"]
    return " · ".join(parts)
