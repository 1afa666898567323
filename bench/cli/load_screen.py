"""What `bench load` shows: how it goes while it runs, a table when it ended, or one JSON object."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from bench.load.generator import Progress
from bench.load.histogram import Histogram
from bench.load.spec import LoadReport, LoadSpec

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
# A terminal is drawn anew so often; where there is none, a line is written so often, or as many
# times in all.
DRAW_S, LINE_S, LINES = 0.1, 1.0, 20


@contextmanager
def watching(spec: LoadSpec) -> Iterator[Progress]:
    """Shows on standard error what the yielded function is told."""
    console = Console(highlight=False, stderr=True)
    if not console.is_terminal:
        yield _Lines(spec, console).update
        return
    watch = _Watch(spec)
    with Live(console=console, transient=True, auto_refresh=False) as live:
        screen = _Screen(watch, live)
        yield screen.update


class _Watch:
    """What happened: in all, and in the last second. Told from several threads, under its lock."""

    def __init__(self, spec: LoadSpec) -> None:
        self.spec, self.lock = spec, threading.Lock()
        self.start = time.monotonic()
        self.ok = self.failed = self.waiting = 0
        self._recent: deque[tuple[float, Histogram]] = deque()

    def add(self, found: dict[str, Any]) -> None:
        now = time.monotonic()
        self.ok += found["ok"]
        self.failed += found["failed"]
        self.waiting += found["waiting"]
        self._recent.append((now, Histogram.from_json(found["latency"])))
        while self._recent[0][0] < now - 1:
            self._recent.popleft()

    def cells(self) -> dict[str, str]:
        recent = Histogram()
        for _, histogram in self._recent:
            recent.add(histogram)
        total = self.spec.warmup_s + self.spec.seconds
        return {
            "seconds": f"{min(time.monotonic() - self.start, total):.1f} of {total:.4g}",
            "answers/s": f"{recent.count:,}",
            "p50": _ms(recent.percentile(50)),
            "p99": _ms(recent.percentile(99)),
            "waiting": f"{self.waiting:,}",
            "good": f"{self.ok:,}",
            "failed": f"{self.failed:,}",
        }


class _Screen:
    """A table that is drawn anew."""

    def __init__(self, watch: _Watch, live: Live) -> None:
        self._watch, self._live, self._drawn = watch, live, 0.0

    def update(self, found: dict[str, Any]) -> None:
        with self._watch.lock:
            self._watch.add(found)
            if time.monotonic() - self._drawn > DRAW_S:
                self._drawn = time.monotonic()
                self._live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        table = Table(title=_what(self._watch.spec), title_justify="left")
        cells = self._watch.cells()
        for column in cells:
            table.add_column(column, justify="right")
        table.add_row(*cells.values())
        return table


class _Lines:
    """One line now and then, for files and pipes."""

    def __init__(self, spec: LoadSpec, console: Console) -> None:
        self._watch, self._console = _Watch(spec), console
        self._every = max(LINE_S, (spec.warmup_s + spec.seconds) / LINES)
        self._next = self._watch.start + self._every

    def update(self, found: dict[str, Any]) -> None:
        with self._watch.lock:
            self._watch.add(found)
            if time.monotonic() >= self._next:
                self._next += self._every
                cells = self._watch.cells()
                said = ", ".join(f"{name} {cell}" for name, cell in cells.items() if cell)
                self._console.print(said, markup=False, soft_wrap=True)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds == seconds else ""


def show(spec: LoadSpec, report: LoadReport, console: Console) -> None:
    early = f", interrupted after {report.seconds:.1f} of" if report.interrupted else ","
    console.print(
        f"{_what(spec)}\n{spec.connections} connections, {_how(spec)}{early} {spec.seconds:.4g} s",
        markup=False,
    )
    table = Table(show_header=False, box=None)
    table.add_row("good answers", f"{report.ok:,}", f"{report.rate:,.1f}/s")
    for status, count in sorted(report.statuses.items()):
        if status[0] != "2":
            table.add_row(f"status {status}", f"{count:,}", escape(report.said.get(status, "")))
    for error, count in sorted(report.errors.items()):
        table.add_row(error, f"{count:,}", "")
    if report.refused:
        table.add_row("connections refused", f"{report.refused:,}", "")
    if report.mean_batch is not None:
        table.add_row("executed together", f"{report.mean_batch:.1f}", "rows on average")
    for what, count in (("events", report.events), ("tokens", report.tokens)):
        if count:
            table.add_row(what, f"{count:,}", f"{count / report.seconds:,.1f}/s")
    table.add_row("received", f"{report.received / 1e6:,.1f} MB", "")
    console.print(table)
    if report.latency.count:
        console.print(_latency_table(report))
        if spec.open_loop:
            console.print("[dim]from the time at which a request was due, sent or not")
    for note in notes(spec, report):
        console.print(note, style="yellow", markup=False)


def _latency_table(report: LoadReport) -> Table:
    table = Table(title="latency", title_justify="left")
    table.add_column("")
    for percent in PERCENTILES:
        table.add_column(f"p{percent:g}", justify="right")
    table.add_column("most", justify="right")
    for what, histogram in _latencies(report).items():
        cells = [_ms(histogram.percentile(percent)) for percent in PERCENTILES]
        table.add_row(what, *cells, _ms(histogram.most / 1e9))
    return table


def notes(spec: LoadSpec, report: LoadReport) -> list[str]:
    """How the client itself was the limit, and what would help."""
    found = []
    if report.limit:
        own = "these latencies hold our own lateness"
        what = own if spec.open_loop else "the server may do more"
        found.append(f"{what}: {report.limit}; more --processes may help")
    if report.backlog:
        found.append(
            f"up to {report.backlog:,} requests waited for one of {spec.connections} connections, "
            "which their latencies hold; more --connections may help"
        )
    return found


def _what(spec: LoadSpec) -> str:
    return spec.url if spec.mode == "ws" else f"{spec.method} {spec.url}"


def _how(spec: LoadSpec) -> str:
    if spec.trace is not None:
        return f"{spec.trace} replayed {spec.speed:g} times as fast"
    if spec.rate is None:
        return "as fast as they are answered"
    return f"{spec.rate:,.4g}/s, {spec.arrivals}"


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
        "arrivals": spec.arrivals if spec.rate is not None else None,
        "trace": spec.trace,
        "seed": spec.seed,
        "seconds": report.seconds,
        "interrupted": report.interrupted,
        "sent": report.sent,
        "ok": report.ok,
        "ok_per_second": report.rate,
        "statuses": report.statuses,
        "errors": report.errors,
        "said": report.said,
        "refused": report.refused,
        "reconnects": report.reconnects,
        "events": report.events,
        "tokens": report.tokens,
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
