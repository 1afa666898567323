"""What `bench load` shows: a line while it runs, a table when it ended, or one JSON object."""

from __future__ import annotations

import threading
import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from bench.load.histogram import Histogram
from bench.load.spec import LoadReport, LoadSpec

PERCENTILES = (50.0, 90.0, 99.0, 99.9)


class Screen:
    """What happens, once a second's tenth; called from the threads that read the generators."""

    def __init__(self, spec: LoadSpec) -> None:
        self._spec = spec
        self._lock = threading.Lock()
        self._start = time.monotonic()
        self._drawn = 0.0
        self._ok = self._failed = self._waiting = 0
        self._recent: list[tuple[float, int]] = []
        self._p50 = self._p99 = float("nan")
        self.live: Live | None = None

    def update(self, found: dict[str, Any]) -> None:
        with self._lock:
            now = time.monotonic()
            self._ok += found["ok"]
            self._failed += found["failed"]
            self._waiting = found["waiting"]
            self._recent = [pair for pair in self._recent if pair[0] > now - 1] + [
                (now, found["ok"])
            ]
            if found["ok"]:
                self._p50, self._p99 = found["p50"], found["p99"]
            if self.live is not None and now - self._drawn > 0.1:
                self._drawn = now
                self.live.update(self.table(), refresh=True)

    def table(self) -> Table:
        table = Table(title=_what(self._spec), title_justify="left")
        for column in ("seconds", "answers/s", "p50", "p99", "waiting", "good", "failed"):
            table.add_column(column, justify="right")
        total = self._spec.warmup_s + self._spec.seconds
        table.add_row(
            f"{min(time.monotonic() - self._start, total):.1f} of {total:g}",
            f"{sum(count for _, count in self._recent):,}",
            _ms(self._p50),
            _ms(self._p99),
            f"{self._waiting:,}",
            f"{self._ok:,}",
            f"{self._failed:,}",
        )
        return table


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds == seconds else ""


def show(spec: LoadSpec, report: LoadReport, console: Console) -> None:
    console.print(
        f"{_what(spec)}\n{spec.connections} connections, {_how(spec)}, {report.seconds:g} s"
    )
    table = Table(show_header=False, box=None)
    table.add_row("good answers", f"{report.ok:,}", f"{report.rate:,.1f}/s")
    for status, count in sorted(report.statuses.items()):
        if status[0] != "2":
            table.add_row(f"status {status}", f"{count:,}", "")
    for error, count in sorted(report.errors.items()):
        table.add_row(error, f"{count:,}", "")
    if report.refused:
        table.add_row("connections refused", f"{report.refused:,}", "")
    if report.mean_batch is not None:
        table.add_row("executed together", f"{report.mean_batch:.1f}", "rows on average")
    if report.events:
        table.add_row("events", f"{report.events:,}", f"{report.events / report.seconds:,.1f}/s")
    table.add_row("received", f"{report.received / 1e6:,.1f} MB", "")
    console.print(table)
    if report.latency.count:
        table = Table(title="latency", title_justify="left")
        table.add_column("")
        for percent in PERCENTILES:
            table.add_column(f"p{percent:g}", justify="right")
        table.add_column("most", justify="right")
        for what, histogram in _latencies(report).items():
            cells = [_ms(histogram.percentile(percent)) for percent in PERCENTILES]
            table.add_row(what, *cells, _ms(histogram.most / 1e9))
        console.print(table)
        if spec.open_loop:
            console.print("[dim]from the time at which a request was due, sent or not")
    if report.limit:
        own = "these latencies hold our own lateness"
        what = own if spec.open_loop else "the server may do more"
        console.print(f"[yellow]{what}: {report.limit}")


def _what(spec: LoadSpec) -> str:
    return spec.url if spec.mode == "ws" else f"{spec.method} {spec.url}"


def _how(spec: LoadSpec) -> str:
    if spec.trace is not None:
        return f"{spec.trace} replayed {spec.speed:g} times as fast"
    return f"{spec.rate:,.0f}/s, {spec.arrivals}" if spec.rate else "as fast as they are answered"


def _latencies(report: LoadReport) -> dict[str, Histogram]:
    """Of whole answers, and of streams' parts if there were some."""
    found = {"answer": report.latency, "first event": report.first, "between": report.gaps}
    return {what: histogram for what, histogram in found.items() if histogram.count}


def figures(spec: LoadSpec, report: LoadReport) -> dict[str, Any]:
    return {
        "url": spec.url,
        "mode": spec.mode,
        "connections": spec.connections,
        "rate": spec.rate,
        "seconds": report.seconds,
        "sent": report.sent,
        "ok": report.ok,
        "ok_per_second": report.rate,
        "statuses": report.statuses,
        "errors": report.errors,
        "refused": report.refused,
        "reconnects": report.reconnects,
        "events": report.events,
        "first_event_ms": _percentiles(report.first),
        "between_events_ms": _percentiles(report.gaps),
        "received_bytes": report.received,
        "latency_ms": {**_percentiles(report.latency), "most": report.latency.most / 1e6},
        "waiting_most": report.backlog,
        "mean_batch": report.mean_batch,
        "generator_limit": report.limit,
    }


def _percentiles(histogram: Histogram) -> dict[str, float]:
    return histogram.milliseconds(*PERCENTILES) if histogram.count else {}
