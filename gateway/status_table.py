"""A gateway's status as tables in a terminal. Owns the columns; changes nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

COLOURS = {"ready": "green", "draining": "yellow", "loading": "yellow", "starting": "yellow"}

Json = dict[str, Any]


def show(status: Json) -> None:
    _console().print(render(status))


def watch(ask: Callable[[], Json], every_s: float) -> None:
    """Until interrupted: in place on a terminal, one after the other elsewhere."""
    console = _console()
    if not console.is_terminal:
        while True:
            console.print(render(ask()))
            time.sleep(every_s)
    with Live(render(ask()), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(every_s)
            live.update(render(ask()), refresh=True)


def render(status: Json) -> RenderableType:
    up = timedelta(seconds=int(status["uptime_s"]))
    head = f"penstock {status['version']} {status['state']}, up {up}, on {status['listen']}"
    models = [_model(model) for model in status["models"]]
    replicas = [_replica(m["name"], r) for m in status["models"] for r in m["replicas"]]
    canaries = [_canary(m["name"], m["rollout"]["canary"]) for m in status["models"]]
    return Group(
        Text(head),
        Text(),
        _table("worker state pid restarts memory", [_worker(w) for w in status["workers"]]),
        Text(),
        _table("model kind ready waiting accepted done failed cancelled live skew", models),
        Text(),
        _table(
            "replica model state version reload weight in-flight work breaker pid restarts reason",
            replicas,
        ),
        *(text for text in canaries if text is not None),
    )


def _worker(worker: Json) -> list[Any]:
    memory = worker["rss_mb"]
    return [
        worker["name"],
        _state(worker["state"]),
        worker["pid"],
        worker["restarts"],
        f"{memory:.0f} MB" if memory is not None else "",
    ]


def _model(model: Json) -> list[Any]:
    counters = model["counters"]
    names = ("accepted", "done", "failed", "cancelled", "live")
    return [
        model["name"],
        model["kind"],
        _state("ready") if model["ready"] else Text("no", "red"),
        model["waiting"],
        *(counters.get(name, 0) for name in names),
        _skew(model["rollout"]),
    ]


def _skew(rollout: Json) -> str:
    """How many versions are served at a time by replicas that should agree, and for how long."""
    if not rollout["skew_s"]:
        return "none"
    return f"{len(rollout['versions'])} versions, {rollout['skew_s']:.0f} s"


def _canary(model: str, canary: Json | None) -> Text | None:
    """What is tried on how many requests, how it does, and what was decided last."""
    if canary is None:
        return None
    parts = [f"canary of {model}, {canary['share']:.0%} by {canary['by']}:"]
    if canary["trying"]:
        parts.append(f"tries {canary['trying']}")
        for side in ("canary", "stable") if canary["numbers"] else ():
            found = canary["numbers"][side]
            parts.append(f"{side} {found['requests']} requests, {found['failed']} failed;")
    else:
        parts.append("tries nothing")
    if last := canary["last"]:
        parts.append(f"(last: {last['decision']} {last['version']}, {last['why']})")
    return Text(" ".join(parts), "dim")


def _replica(model: str, replica: Json) -> list[Any]:
    reload = replica["reload"]
    target = f" → {replica['reload_to']}" if replica.get("reload_to") else ""
    return [
        replica["name"],
        model,
        _state(replica["state"]),
        replica["version"],
        f"{reload}{target}",
        f"{replica['weight']:g}" + (" drained" if replica["drained"] else ""),
        f"{replica['in_flight']}/{replica['slots']}",
        f"{replica['work']:.4g} {replica.get('unit', '')}",
        replica["breaker"],
        replica["pid"] or "",
        replica.get("process", {}).get("restarts", ""),
        replica["reason"],
    ]


def _state(state: str) -> Text:
    return Text(state, COLOURS.get(state, "red"))


def _table(columns: str, rows: list[list[Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns.split():
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else str(cell) for cell in row))
    return table


def _console() -> Console:
    # A pipe has no width; wrapping for some would break what reads it.
    return Console(highlight=False, width=None if sys.stdout.isatty() else 240)
