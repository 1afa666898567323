"""Pictures of a record: one function each, which returns None where the record has nothing for it.

Owns what is drawn. Needs matplotlib (`pip install 'penstock[bench]'`); nothing else of the product
does. Invariant: nothing is drawn that the record does not hold.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bench.report.style import FLOOR, OURS, Pen, Theme, canvas, finish, legend, themed
from bench.tables import number

Record = Mapping[str, Any]
# Of a simulation with many cells: enough to see the rule.
CELLS = 6


def draw(record: Record, theme: Theme) -> dict[str, Figure]:
    """By a name that fits a file."""
    pen = Pen(theme, {name: index for index, name in enumerate(_names(record))})
    found: dict[str, Figure] = {}
    with themed(theme):
        for name, make in PLOTS.items():
            figure = make(record, pen)
            if figure is not None:
                found[name] = figure
    return found


def _names(record: Record) -> list[str]:
    """The rivals, so that each keeps its colour."""
    detail = record["detail"]
    series = detail.get("repetitions") or {}
    names = dict.fromkeys(
        [*record["rivals"], *(who for one in series.values() for who in one["values"])]
    )
    for match in (detail.get("matches") or [])[:1]:
        names |= dict.fromkeys(match.get("goodput", {}))
    for one in (detail.get("scenarios") or {}).values():
        names |= dict.fromkeys(one.get("p99_ms", {}))
    return [who for who in names if who != FLOOR and not who.startswith(OURS)]


def repetitions(record: Record, pen: Pen) -> Figure | None:
    """Every repetition of every contender, and their medians."""
    series = {
        metric: one
        for metric, one in (record["detail"].get("repetitions") or {}).items()
        if any(one["values"].values())
    }
    if not series:
        return None
    most = max(len(one["values"]) for one in series.values())
    figure, all_axes = canvas(len(series), height=1.3 + 0.28 * most)
    for axes, (metric, one) in zip(all_axes, series.items(), strict=True):
        _bars(axes, metric, one, pen)
    return figure


def _bars(axes: Axes, metric: str, one: Mapping[str, Any], pen: Pen) -> None:
    """The best on top."""
    values = {who: found for who, found in one["values"].items() if found}
    medians = {who: statistics.median(found) for who, found in values.items()}
    higher = one["higher_is_better"]
    order = sorted(medians, key=lambda who: medians[who], reverse=higher)
    for place, who in enumerate(order):
        ours = who.startswith(OURS)
        axes.barh(place, medians[who], color=pen.colour(who), alpha=1 if ours else 0.65)
        axes.plot(values[who], [place] * len(values[who]), "|", color=pen.theme.text, markersize=7)
        end = max(medians[who], *values[who])
        weight = "bold" if ours else "normal"
        shown = f"  {number(medians[who])} {one['unit']}"
        axes.text(end, place, shown, va="center", fontsize=8, fontweight=weight)
    axes.set_yticks(range(len(order)), order)
    for label, who in zip(axes.get_yticklabels(), order, strict=True):
        label.set_fontweight("bold" if who.startswith(OURS) else "normal")
    axes.invert_yaxis()
    axes.set_title(metric)
    axes.set_xlabel(f"{one['unit']}: {'more' if higher else 'less'} is better")
    axes.margins(x=0.25)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def latency_over_throughput(record: Record, pen: Pen) -> Figure | None:
    """Open loop: what was answered, and how late."""
    curve = record["detail"].get("curve")
    if not curve:
        return None
    figure, all_axes = canvas(2)
    for axes, key in zip(all_axes, ("p50", "p99"), strict=True):
        for who, points in curve.items():
            answered = [point["answered"] for point in points]
            axes.plot(answered, [1e3 * point[key] for point in points], **pen.line(who))
        title = f"{key} against throughput"
        finish(axes, title, "answered, requests/s", "ms, from the intended time", log_y=True)
    legend(figure, all_axes[0])
    return figure


def p99_over_load(record: Record, pen: Pen) -> Figure | None:
    """Of an open loop, or of a simulation's scenarios."""
    curve = record["detail"].get("curve")
    if curve:
        figure, (axes,) = canvas(1, height=3.8)
        for who, points in curve.items():
            offered = [point["rate"] for point in points]
            axes.plot(offered, [1e3 * point["p99"] for point in points], **pen.line(who))
        limit = record["detail"].get("limit_ms")
        if limit:
            axes.axhline(limit, color=pen.theme.text, linewidth=1, linestyle=":", label="limit")
        x, y = "offered, requests/s (Poisson)", "p99, ms from the intended time"
        finish(axes, "p99 against load", x, y, log_y=True)
        legend(figure, axes)
        return figure
    scenarios = record["detail"].get("scenarios")
    if isinstance(scenarios, Mapping) and scenarios:
        return _simulated_p99(scenarios, pen)
    return None


def _simulated_p99(scenarios: Mapping[str, Any], pen: Pen) -> Figure | None:
    """Of `sim routing`: every policy's p99 at each load."""
    several = {name: one for name, one in scenarios.items() if len(one["loads"]) > 1}
    if not several:
        return None
    figure, all_axes = canvas(min(CELLS, len(several)), height=3.0)
    for axes, (name, one) in zip(all_axes, several.items(), strict=False):
        for who, p99 in one["p99_ms"].items():
            axes.plot(one["loads"], p99, **pen.line(who if who != one["ours"] else OURS))
        finish(axes, name, "load, share of the capacity", "p99, ms", log_y=True)
    legend(figure, all_axes[0])
    return figure


def batch_sizes(record: Record, pen: Pen) -> Figure | None:
    """How many requests are executed together as the load rises."""
    detail = record["detail"]
    told: dict[str, list[Mapping[str, Any]]] = {}
    for match in detail.get("matches") or []:
        if "mean_batch" in match:
            told.setdefault(match["cell"], []).append(match)
    if batches := [one for one in detail.get("batches") or [] if one["mean_batch"]]:
        told[OURS] = batches
    if not told:
        return None
    figure, (axes,) = canvas(1, height=3.8)
    for index, (name, found) in enumerate(told.items()):
        style = Pen(pen.theme, {name: index}).line(name)
        axes.plot([one["load"] for one in found], [one["mean_batch"] for one in found], **style)
    finish(axes, "batch sizes", "load, share of the capacity", "rows executed together, mean")
    legend(figure, axes)
    return figure


def goodput(record: Record, pen: Pen) -> Figure | None:
    """Of `sim batching`: answered in time, beside the rules of others and the oracles."""
    matches = record["detail"].get("matches")
    if not matches or "goodput" not in matches[0]:
        return None
    cells = list(dict.fromkeys(match["cell"] for match in matches))[:CELLS]
    figure, all_axes = canvas(len(cells), height=3.0)
    for axes, cell in zip(all_axes, cells, strict=True):
        played = [match for match in matches if match["cell"] == cell]
        loads = [match["load"] for match in played]
        for who in played[0]["goodput"]:
            shares = [100 * match["goodput"][who] for match in played]
            axes.plot(loads, shares, **pen.line(who))
        for bound, mark in (("l3", ":"), ("l2", "--")):
            if played[0].get(bound):
                shares = [100 * match[bound] for match in played]
                label = f"oracle {bound.upper()}"
                axes.plot(loads, shares, mark, color=pen.theme.text, linewidth=1, label=label)
        finish(axes, cell, "load, share of the capacity", "% answered in time")
        axes.set_ylim(60, 102)
    legend(figure, all_axes[0])
    return figure


def reload_timeline(record: Record, pen: Pen) -> Figure | None:
    """Latency while versions are published."""
    timeline = record["detail"].get("timeline")
    if not timeline:
        return None
    figure, (axes,) = canvas(1, height=3.8)
    times, p50, most = zip(*timeline["bins"], strict=True)
    colour = pen.colour("rival")
    axes.plot(times, most, color=colour, linewidth=1, label="slowest of 0.1 s")
    axes.plot(times, p50, color=pen.theme.ours, linewidth=2, label="p50 of 0.1 s")
    for index, at in enumerate(timeline["published"]):
        label = None if index else "a version is published"
        axes.axvline(at, color=pen.theme.floor, linewidth=0.9, linestyle="--", label=label)
    finish(axes, "latency while versions are published", "s", "ms, from the intended time")
    legend(figure, axes)
    return figure


def roofline(record: Record, pen: Pen) -> Figure | None:
    """Of `llm`: the steps between prompts, each generator at each number of sequences, below what
    the memory and the arithmetic allow."""
    machine, cells = record["detail"].get("machine"), record["detail"].get("cells")
    if not machine or not cells:
        return None
    bandwidth, peak = machine["bytes_s"] / 1e9, machine["flops"] / 1e9
    ridge = peak / bandwidth
    figure, (axes,) = canvas(1, height=4.2)
    lines: dict[str, list[tuple[float, float]]] = {}
    for cell in cells.values():
        for who, one in cell.items():
            if one.get("bandwidth") and one.get("flops"):
                reached = one["flops"] * peak
                intensity = reached / (one["bandwidth"] * bandwidth)
                lines.setdefault(who, []).append((intensity, reached))
    if not lines:
        return None
    low = min(x for points in lines.values() for x, _ in points) / 2
    roof = [low * bandwidth, peak, peak]
    axes.plot([low, ridge, ridge * 4], roof, color=pen.theme.text, linewidth=1.5, label="roof")
    for who, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), **{**pen.line(who), "linewidth": 0.8})
    title = f"roofline: {number(bandwidth)} GB/s and {number(peak)} GFLOP/s, as measured"
    axes.set_xscale("log")
    finish(axes, title, "FLOP per byte of memory read", "GFLOP/s", log_y=True)
    legend(figure, axes)
    return figure


PLOTS: Mapping[str, Callable[[Record, Pen], Figure | None]] = {
    "repetitions": repetitions,
    "latency-over-throughput": latency_over_throughput,
    "p99-over-load": p99_over_load,
    "goodput": goodput,
    "batch-sizes": batch_sizes,
    "reload-timeline": reload_timeline,
    "roofline": roofline,
}
