"""How figures are shown: medians of servers and metrics, with the spread of their repetitions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from bench.series import Series


def figures_table(title: str, names: Sequence[str], metrics: Sequence[Series]) -> Table:
    """One row a server."""
    table = Table(title=title, title_justify="left")
    table.add_column("server")
    for series in metrics:
        table.add_column(series.metric, justify="right")
        table.add_column("spread", justify="right", style="dim")
    for name in names:
        cells: list[str] = []
        for series in metrics:
            cells += _cells(series, name)
        table.add_row(name, *cells)
    return table


def metrics_table(title: str, names: Sequence[str], metrics: Sequence[Series]) -> Table:
    """One row a metric."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
        table.add_column("spread", justify="right", style="dim")
    for series in metrics:
        cells: list[str] = []
        for name in names:
            cells += _cells(series, name)
        table.add_row(series.metric, *cells)
    return table


def cost_table(what: str, cpu_us: Mapping[str, float], memory_mb: Mapping[str, float]) -> Table:
    """What each server's processes used, the cheapest first."""
    table = Table(title=f"what the {what} itself used", title_justify="left")
    for column in (what, "CPU per request", "memory"):
        table.add_column(column, justify="left" if column == what else "right")
    for name, micros in sorted(cpu_us.items(), key=lambda item: item[1]):
        table.add_row(name, f"{number(micros)} µs", f"{number(memory_mb[name])} MB")
    return table


def _cells(series: Series, name: str) -> tuple[str, str]:
    figure, spread = series.median(name), series.spread(name)
    if figure is None:
        return "unavailable", ""
    several = spread is not None and len(series.values[name]) > 1
    return f"{number(figure)} {series.unit}", f"{spread:.0%}" if several else ""


def number(value: float) -> str:
    """About three digits: 73,412 and 12.4 and 0.173."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
