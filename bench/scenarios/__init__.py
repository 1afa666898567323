"""Scenarios of `python -m bench run`: each a module here with one function `@scenario(...)`.

Owns their registration. A scenario's module is imported only when it runs or is listed, so that
one which needs a GPU or a rival costs the others nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from bench.record import Record

# The names on the command line and their modules.
MODULES = {
    "small-tensor": "bench.scenarios.small_tensor",
    "device": "bench.scenarios.device",
    "idle": "bench.scenarios.idle",
    "reload": "bench.scenarios.reload",
    "reload-memory": "bench.scenarios.reload_memory",
    "loop": "bench.scenarios.loop",
    "hot-path": "bench.scenarios.hot_path",
    "relay": "bench.scenarios.relay",
    "stream": "bench.scenarios.stream",
    "failover": "bench.scenarios.failover",
    "checkpoint": "bench.scenarios.checkpoint",
    "train": "bench.scenarios.train",
    "train-gpu": "bench.scenarios.train_gpu",
    "train-recovery": "bench.scenarios.train_recovery",
    "sync": "bench.scenarios.sync",
    "many": "bench.scenarios.many",
    "llm": "bench.scenarios.llm",
    "llm-gpu": "bench.scenarios.llm_gpu",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a run was asked for. `folder` is for logs and sockets; it is gone after the run."""

    quick: bool
    seed: int
    rivals: tuple[str, ...] | None
    folder: Path
    console: Console


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    summary: str
    run: Callable[[Options], Record]


_FOUND: dict[str, Scenario] = {}


def scenario(name: str, summary: str) -> Callable[[Callable[[Options], Record]], Scenario]:
    """Registers the decorated function as the scenario `name`, which MODULES must list."""

    def register(run: Callable[[Options], Record]) -> Scenario:
        _FOUND[name] = Scenario(name, summary, run)
        return _FOUND[name]

    return register


def find(name: str) -> Scenario:
    importlib.import_module(MODULES[name])
    return _FOUND[name]
