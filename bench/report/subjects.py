"""What some scenarios show instead of medians of repeated metrics: tables of their own subject.

Owns how each of those records' detail is read. Pure. Invariant: a table has nothing that is not in
its record.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bench.report.figures import OURS, Record, Table, absent, shown_name, table
from bench.tables import number

# Where memory is looked at during a thousand reloads, as shares of them.
_MARKS = (0.0, 0.1, 0.5, 1.0)
_ALL_KNOWING = "omniscient"


def tables(record: Record) -> list[Table]:
    """At least one; who did not run is told in the last."""
    make = _OWN.get(str(record["scenario"]))
    if make is None:
        return [table(record)]
    *first, last = make(record)
    return [*first, replace(last, absent=absent(record))]


def _kills(record: Record) -> list[Table]:
    columns = ["failed", "hurt after each kill, ms", "back after, s", "p99 at its return, ×"]
    rows = []
    for who, kills in record["detail"]["kills"].items():
        back = [one["back"] for one in kills if one["back"] is not None]
        spikes = [one["p99_back"] / one["p99_before"] for one in kills if one["p99_back"]]
        missed = len(kills) - len(back)
        cells = [
            f"{sum(one['failed'] for one in kills):,} of {sum(one['requests'] for one in kills):,}",
            ", ".join(number(1e3 * one["hurt_until"]) for one in kills),
            f"never in {missed} of {len(kills)}" if missed else number(statistics.median(back)),
            number(statistics.median(spikes)) if spikes else "",
        ]
        rows.append((shown_name(who), cells))
    return [Table(columns, rows, {}, corner="gateway")]


def _held(record: Record) -> list[Table]:
    detail = record["detail"]
    columns = ["memory of each, KB", "CPU, % of a core", "another request meanwhile, ms"]
    rows = []
    for what, one in detail["held"].items():
        count = detail["count"]["WebSockets" if what == "WebSockets" else "streams"]
        cells = [number(one["kb"]), number(100 * one["cpu"]), number(one["answer_ms"])]
        rows.append((f"{count:,} {what}", cells))
    rows += [(what, [reason, "", ""]) for what, reason in detail["failures"].items()]
    return [Table(columns, rows, {}, corner="held by one worker")]


def _generators(record: Record) -> list[Table]:
    """A table a kind of prompts."""
    columns = ["at once", "tokens/s", "of the roof, %", "TTFT p50, p99, ms", "gap p50, p99, ms"]
    columns += ["MBU, %", "MFU, %", "prompt from the cache, %"]
    found = []
    for plan in record["detail"]["plans"]:
        rows = []
        for cell, figures in record["detail"]["cells"].items():
            name, _, batch = cell.partition(", ")
            if name != plan["name"]:
                continue
            one_each = {who: each for who, each in figures.items() if who != "roof_tokens_s"}
            rows += [
                (shown_name(who), [batch.removesuffix(" at once"), *_generated(each)])
                for who, each in one_each.items()
                if each
            ]
        own = f"{plan['own']} tokens" if not plan["shared"] else f"{plan['own']} tokens of its own"
        prefix = f"{plan['shared']} in common, " if plan["shared"] else ""
        title = f"Prompts of {prefix}{own}, answers of {plan['tokens']}:"
        found.append(Table(columns, rows, {}, corner="server", title=title))
    return found


def _generated(each: Mapping[str, float]) -> list[str]:
    return [
        number(each["tokens_s"]),
        f"{100 * each['of_roof']:.0f}",
        f"{number(each['ttft_p50_ms'])}, {number(each['ttft_p99_ms'])}",
        f"{number(each['gap_p50_ms'])}, {number(each['gap_p99_ms'])}",
        f"{100 * each['bandwidth']:.0f}",
        f"{100 * each['flops']:.0f}",
        f"{100 * each['cached']:.0f}",
    ]


def _reloads(record: Record) -> list[Table]:
    """Resident memory of the replicas after so many of the reloads."""
    detail = record["detail"]
    kinds = [kind for kind in ("tensors", "text") if kind in detail]
    rows = []
    for mark in _MARKS:
        count = round(mark * min(detail[kind]["reloads"] for kind in kinds))
        cells = []
        for kind in kinds:
            series = detail[kind]["mb"]
            at = round(count / detail[kind]["reloads"] * (len(series) - 1))
            cells.append(f"{series[at]:.1f}")
        rows.append((f"{count:,}", cells))
    columns = [f"replica of {kind}, MB" for kind in kinds]
    return [Table(columns, rows, {}, corner="after reloads")]


def _loop(record: Record) -> list[Table]:
    detail = record["detail"]
    columns = ["sent", "answered", "failed", "versions that answered", "published", "faults"]
    columns += ["p50, ms", "p99, ms"]
    counts = [detail[name] for name in ("sent", "answered", "failed", "versions_answered")]
    counts += [detail["generations"], sum(detail["faults"].values())]
    cells = [f"{count:,}" for count in counts]
    cells += [number(detail["p50_ms"]), number(detail["p99_ms"])]
    return [Table(columns, [(shown_name(OURS), cells)], {})]


def _batching(record: Record) -> list[Table]:
    """The means; then each cell, ours beside the best of the others, at each load."""
    matches = record["detail"]["matches"]
    loads = sorted({match["load"] for match in matches})
    by_cell: dict[str, dict[float, str]] = {}
    for match in matches:
        goodput = match["goodput"]
        best = max(value for name, value in goodput.items() if name != OURS)
        both = f"{100 * goodput[OURS]:.1f} · {100 * best:.1f}"
        by_cell.setdefault(match["cell"], {})[match["load"]] = both
    rows = [(cell, [each.get(load, "") for load in loads]) for cell, each in by_cell.items()]
    columns = [f"load {load:g}" for load in loads]
    title = "In time, %, ours · the best of the others:"
    return [table(record), Table(columns, rows, {}, corner="cell", title=title)]


def _routing(record: Record) -> list[Table]:
    """The means; then p99 of each scenario at its highest load."""
    rivals = record["rivals"]
    rows = []
    for name, found in record["detail"]["scenarios"].items():
        last = {policy: values[-1] for policy, values in found["p99_ms"].items()}
        beside = {policy: value for policy, value in last.items() if policy in rivals}
        best = min(beside, key=lambda policy: beside[policy])
        cells = [
            f"{found['loads'][-1]:g}",
            f"{found['ours']} {last[found['ours']]:.1f}",
            f"{best} {beside[best]:.1f}",
            f"{last[_ALL_KNOWING]:.1f}" if _ALL_KNOWING in last else "",
        ]
        rows.append((name, cells))
    columns = ["load", "ours", "best rival", "all-knowing"]
    title = "p99 in ms at each scenario's highest load:"
    return [table(record), Table(columns, rows, {}, corner="scenario", title=title)]


_OWN: Mapping[str, Callable[[Record], Sequence[Any]]] = {
    "failover": _kills,
    "many": _held,
    "llm": _generators,
    "reload-memory": _reloads,
    "loop": _loop,
    "sim-batching": _batching,
    "sim-routing": _routing,
}
