"""`python -m gateway check` and `schema`: what a configuration says, without starting anything."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from gateway import config
from gateway.config import ConfigError, GatewayConfig, ModelConfig, ReplicaConfig
from gateway.config_schema import json_schema
from gateway.replica_files import look_at


def check(file: Path, overrides: Sequence[str]) -> int:
    try:
        found = config.load(file, os.environ, overrides)
    except ConfigError as error:
        count = len(error.problems)
        print(f"{error}\n{count} {'problem' if count == 1 else 'problems'}", file=sys.stderr)
        return 2
    findings, kinds = look_at(found)
    for finding in findings:
        print(finding, file=sys.stderr)
    wrong = sum(finding.wrong for finding in findings)
    if wrong:
        print(f"{wrong} {'problem' if wrong == 1 else 'problems'}", file=sys.stderr)
        return 2
    _show(found, kinds)
    return 0


def schema() -> int:
    print(json.dumps(json_schema(), indent=2))
    return 0


def _show(found: GatewayConfig, kinds: Mapping[str, str]) -> None:
    """`kinds`: of models that do not declare theirs, as the files of their replicas have it."""
    # A pipe has no width; lines cut to some would hide what was asked for.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    server = found.server
    workers = f"{server.workers} worker" + "s" * (server.workers > 1)
    console.print(f"{found.path}: good; {workers} on {server.listen}, admin on {server.admin}")
    table = Table(box=None, pad_edge=False)
    for column in ("model", "kind", "replicas", "aim", "deadline", "queue", "batch", "routing"):
        table.add_column(column)
    for model in found.models:
        kind = model.kind or kinds.get(model.name)
        table.add_row(
            model.name,
            "http" if model.http else kind or "as told",
            _replicas(model),
            f"{model.slo_ms:g} ms" if model.slo_ms is not None else "none",
            f"{model.call_timeout_ms if kind == 'llm' else model.timeout_ms:g} ms",
            f"{model.max_queue} " + ("rows" if kind == "tensor" else "requests"),
            f"{model.max_batch_size} rows" if model.max_batch_size else "replica's",
            model.routing,
        )
    console.print(table)


def _replicas(model: ModelConfig) -> str:
    return "\n".join(
        f"{replica.name}: {replica.kind}, "
        + _place(replica)
        + (f", weight {replica.weight:g}" if replica.weight != 1.0 else "")
        for replica in model.replicas
    )


def _place(replica: ReplicaConfig) -> str:
    if replica.spawn is not None:
        return f"spawned from {replica.spawn.name}"
    if replica.command is not None:
        return f"runs {replica.command[0]}"
    found = " and wherever else its name leads" if replica.discover else ""
    return f"at {replica.address}{found}"
