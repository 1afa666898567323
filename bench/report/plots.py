"""Pictures of a record: one function each, which returns None where the record has nothing for it.

Owns what is drawn. Needs matplotlib (`pip install 'penstock[bench]'`); nothing else of the product
does. Invariant: nothing is drawn that the record does not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Record = Mapping[str, Any]
OURS, FLOOR = "penstock", "floor"
COLOURS = {OURS: "#0b6e99", FLOOR: "#999999"}
# Of a simulation with many cells: enough to see the rule.
CELLS = 6


def draw(record: Record) -> dict[str, Figure]:
    """By a name that fits a file."""
    found: dict[str, Figure] = {}
    for name, make in PLOTS.items():
        figure = make(record)
        if figure is not None:
            found[name] = figure
    return found


def repetitions(record: Record) -> Figure | None:
    """Every repetition of every contender, and their medians."""
    series = record["detail"].get("repetitions")
    if not isinstance(series, Mapping) or not series:
        return None
    figure, all_axes = _figure(len(series))
    for axes, (metric, one) in zip(all_axes, series.items(), strict=True):
        values = {who: found for who, found in one["values"].items() if found}
        for place, (who, found) in enumerate(values.items()):
            middle = sorted(found)[len(found) // 2]
            axes.barh(place, middle, color=_colour(who), alpha=0.7)
            axes.plot(found, [place] * len(found), "k.", markersize=4)
        axes.set_yticks(range(len(values)), list(values), fontsize=8)
        axes.invert_yaxis()
        more = "more is better" if one["higher_is_better"] else "less is better"
        axes.set(xlabel=f"{metric}, {one['unit']} ({more})")
        axes.set_xlim(left=0)
    return figure


def latency_over_throughput(record: Record) -> Figure | None:
    """Open loop: what was answered, and how late."""
    curve = record["detail"].get("curve")
    if not curve:
        return None
    figure, (axes,) = _figure(1)
    for who, points in curve.items():
        answered = [point["answered"] for point in points]
        axes.plot(answered, [1e3 * point["p50"] for point in points], "o--", **_style(who))
    return _finish(figure, axes, "answered/s", "p50 ms, from the intended time")


def p99_over_load(record: Record) -> Figure | None:
    """Of an open loop, or of a simulation's scenarios."""
    curve = record["detail"].get("curve")
    if curve:
        figure, (axes,) = _figure(1)
        for who, points in curve.items():
            offered = [point["rate"] for point in points]
            axes.plot(offered, [1e3 * point["p99"] for point in points], "o-", **_style(who))
        return _finish(figure, axes, "offered/s", "p99 ms, from the intended time")
    scenarios = record["detail"].get("scenarios")
    if isinstance(scenarios, Mapping) and scenarios:
        return _simulated_p99(scenarios)
    return None


def _simulated_p99(scenarios: Mapping[str, Any]) -> Figure | None:
    """Of `sim routing`: every policy's p99 at each load."""
    several = {name: one for name, one in scenarios.items() if len(one["loads"]) > 1}
    if not several:
        return None
    figure, all_axes = _figure(min(CELLS, len(several)))
    for axes, (name, one) in zip(all_axes, several.items(), strict=False):
        for who, p99 in one["p99_ms"].items():
            axes.plot(one["loads"], p99, "o-", **_style(who if who != one["ours"] else OURS))
        axes.set_title(name, fontsize=9)
        _finish(figure, axes, "load", "p99 ms")
    return figure


def batch_sizes(record: Record) -> Figure | None:
    """How many requests are executed together as the load rises."""
    matches = record["detail"].get("matches")
    if not matches or "mean_batch" not in matches[0]:
        return None
    figure, (axes,) = _figure(1)
    for cell in list(dict.fromkeys(match["cell"] for match in matches)):
        played = [match for match in matches if match["cell"] == cell]
        sizes = [match["mean_batch"] for match in played]
        axes.plot([match["load"] for match in played], sizes, "o-", label=cell, markersize=3)
    return _finish(figure, axes, "load", "requests in a batch, on average")


def goodput(record: Record) -> Figure | None:
    """Of `sim batching`: answered in time, beside the rules of others and the oracles."""
    matches = record["detail"].get("matches")
    if not matches or "goodput" not in matches[0]:
        return None
    cells = list(dict.fromkeys(match["cell"] for match in matches))[:CELLS]
    figure, all_axes = _figure(len(cells))
    for axes, cell in zip(all_axes, cells, strict=True):
        played = [match for match in matches if match["cell"] == cell]
        loads = [match["load"] for match in played]
        for who in played[0]["goodput"]:
            shares = [100 * match["goodput"][who] for match in played]
            axes.plot(loads, shares, "-", **_style(who))
        for bound, mark in (("l3", "k:"), ("l2", "k--")):
            if played[0].get(bound):
                axes.plot(loads, [100 * match[bound] for match in played], mark, linewidth=1)
        axes.set_title(cell, fontsize=9)
        axes.set_ylim(0, 102)
        _finish(figure, axes, "load", "% in time")
    return figure


def reload_timeline(record: Record) -> Figure | None:
    """Latency while versions are published."""
    timeline = record["detail"].get("timeline")
    if not timeline:
        return None
    figure, (axes,) = _figure(1)
    times, p50, most = zip(*timeline["bins"], strict=True)
    axes.plot(times, most, color="#c65d00", linewidth=1, label="slowest of a tenth of a second")
    axes.plot(times, p50, color=COLOURS[OURS], linewidth=1.5, label="p50")
    for index, at in enumerate(timeline["published"]):
        axes.axvline(at, color="#999999", linewidth=0.7, label=None if index else "published")
    axes.set_ylim(bottom=0)
    return _finish(figure, axes, "seconds", "ms, from the intended time")


def roofline(record: Record) -> Figure | None:
    """`detail.roofline`: bandwidth_gb_s, peak_gflop_s, and points with name, flop_per_byte and
    gflop_s."""
    found = record["detail"].get("roofline")
    if not found:
        return None
    bandwidth, peak = found["bandwidth_gb_s"], found["peak_gflop_s"]
    ridge = peak / bandwidth
    figure, (axes,) = _figure(1)
    low = min([point["flop_per_byte"] for point in found["points"]] + [ridge]) / 2
    axes.loglog([low, ridge, ridge * 16], [low * bandwidth, peak, peak], "k-", linewidth=1.5)
    for point in found["points"]:
        axes.loglog(point["flop_per_byte"], point["gflop_s"], "o", label=point["name"])
    return _finish(figure, axes, "FLOP per byte of memory read", "GFLOP/s")


PLOTS: Mapping[str, Callable[[Record], Figure | None]] = {
    "repetitions": repetitions,
    "latency-over-throughput": latency_over_throughput,
    "p99-over-load": p99_over_load,
    "goodput": goodput,
    "batch-sizes": batch_sizes,
    "reload-timeline": reload_timeline,
    "roofline": roofline,
}


def _figure(count: int) -> tuple[Figure, Sequence[Axes]]:
    columns = min(count, 2)
    rows = -(-count // columns)
    size = (7.0 if columns == 1 else 11.0, 3.6 * rows)
    figure, axes = pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    flat = list(axes.flat)
    for unused in flat[count:]:
        unused.set_visible(False)
    return figure, flat[:count]


def _finish(figure: Figure, axes: Axes, x: str, y: str) -> Figure:
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    return figure


def _colour(who: str) -> str:
    return COLOURS.get(who, "#d9a13b")


def _style(who: str) -> dict[str, Any]:
    own: dict[str, Any] = {"color": COLOURS[who]} if who in COLOURS else {}
    return {"label": who, "linewidth": 2.5 if who == OURS else 1.0, "markersize": 3, **own}
