"""`bench load`: a load on any HTTP server, watched while it runs."""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from bench.load import generator
from bench.load.presets import PRESETS, with_preset
from bench.load.spec import LoadReport, LoadSpec
from bench.record import rounded

PERCENTILES = (50.0, 90.0, 99.0, 99.9)


def main(args: argparse.Namespace) -> int:
    console = Console(highlight=False, stderr=True)
    try:
        spec = _spec(args)
        screen = _Screen(spec)
        with Live(screen.table(), console=console, transient=True, auto_refresh=False) as live:
            screen.live = live
            report = generator.run(spec, processes=args.processes, progress=screen.update)
    except (ValueError, OSError, generator.LoadFailed) as error:
        print(f"bench load: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(rounded(_figures(spec, report))))
    else:
        show(spec, report, Console(highlight=False))
    return 0 if report.ok else 1


def _spec(args: argparse.Namespace) -> LoadSpec:
    """Raises ValueError, OSError."""
    headers = {}
    for text in args.header:
        name, colon, value = text.partition(":")
        if not colon:
            raise ValueError(f'expected a header such as "x-priority: 1", got {text!r}')
        headers[name.strip()] = value.strip()
    spec = LoadSpec(
        url=args.url,
        method=args.method or "GET",
        headers=headers,
        connections=args.connections,
        rate=args.rate,
        arrivals=args.arrivals,
        seconds=args.seconds,
        warmup_s=args.warmup,
        timeout_s=args.timeout,
        timing=args.timing,
        seed=args.seed,
    )
    if args.preset is not None:
        spec = with_preset(spec, PRESETS[args.preset])
    if args.body is not None:
        body = sys.stdin.buffer.read() if str(args.body) == "-" else args.body.read_bytes()
        content = {"content-type": "application/json", **headers}
        spec = replace(spec, body=body, method=args.method or "POST", headers=content)
    if not 1 <= args.processes <= args.connections:
        raise ValueError(f"--processes: expected 1 to {args.connections}, got {args.processes}")
    return spec


class _Screen:
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
        table = Table(title=f"{self._spec.method} {self._spec.url}", title_justify="left")
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
    how = f"{spec.rate:,.0f}/s, {spec.arrivals}" if spec.rate else "as fast as they are answered"
    console.print(
        f"{spec.method} {spec.url}\n{spec.connections} connections, {how}, {report.seconds:g} s"
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
    table.add_row("received", f"{report.received / 1e6:,.1f} MB", "")
    console.print(table)
    if report.latency.count:
        table = Table(title="latency", title_justify="left")
        for percent in PERCENTILES:
            table.add_column(f"p{percent:g}", justify="right")
        table.add_column("most", justify="right")
        cells = [_ms(report.latency.percentile(percent)) for percent in PERCENTILES]
        table.add_row(*cells, _ms(report.latency.most / 1e9))
        console.print(table)
        if spec.rate:
            console.print("[dim]from the time at which a request was due, sent or not")
    if report.limit:
        what = "these latencies hold our own lateness" if spec.rate else "the server may do more"
        console.print(f"[yellow]{what}: {report.limit}")


def _figures(spec: LoadSpec, report: LoadReport) -> dict[str, Any]:
    return {
        "url": spec.url,
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
        "received_bytes": report.received,
        "latency_ms": {
            **(report.latency.milliseconds(*PERCENTILES) if report.latency.count else {}),
            "most": report.latency.most / 1e6,
        },
        "waiting_most": report.backlog,
        "mean_batch": report.mean_batch,
        "generator_limit": report.limit,
    }
