"""What a measurement reports: one JSON line with figures, ratios and where they were taken.

Owns the form of the line and the description of the machine. It measures nothing. Invariant: a
ratio above 1 always means that ours is better, whichever way the metric goes; a rival that did
not run is a text saying why, never a number.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.serving import ROOT

# What decides a figure, of what is installed beside us.
PACKAGES = ("torch", "numpy", "uvloop", "httptools", "orjson", "aiohttp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One target of the product beside what was found."""

    what: str
    wanted: str
    found: str
    met: bool

    @classmethod
    def least(cls, what: str, found: float, wanted: float, unit: str) -> Goal:
        return cls(
            what=what,
            wanted=f"≥ {wanted:g} {unit}",
            found=f"{found:.3g} {unit}",
            met=found >= wanted,
        )

    @classmethod
    def most(cls, what: str, found: float, wanted: float, unit: str) -> Goal:
        return cls(
            what=what,
            wanted=f"≤ {wanted:g} {unit}",
            found=f"{found:.3g} {unit}",
            met=found <= wanted,
        )

    def to_json(self) -> dict[str, Any]:
        return {"what": self.what, "wanted": self.wanted, "found": self.found, "met": self.met}


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One scenario's result. `higher_is_better` says which way the metric goes."""

    scenario: str
    metric: str
    unit: str
    higher_is_better: bool
    seed: int
    ours: float | None
    floor: float | None = None
    rivals: Mapping[str, float | str] = field(default_factory=dict[str, float | str])
    goals: Sequence[Goal] = ()
    detail: Mapping[str, Any] = field(default_factory=dict[str, Any])
    versions: Mapping[str, str] = field(default_factory=dict[str, str])

    def ratio(self, other: float | None) -> float | None:
        """Ours against the other: above 1 when ours is better."""
        if not self.ours or not other:
            return None
        return self.ours / other if self.higher_is_better else other / self.ours

    @property
    def best_rival(self) -> float | None:
        figures = [value for value in self.rivals.values() if not isinstance(value, str)]
        if not figures:
            return None
        return max(figures) if self.higher_is_better else min(figures)

    def to_json(self) -> dict[str, Any]:
        return {
            "scenario": self.scenario,
            "metric": self.metric,
            "unit": self.unit,
            "ours": self.ours,
            "floor": self.floor,
            "rivals": dict(self.rivals),
            "ratio_best_rival": self.ratio(self.best_rival),
            "ratio_floor": self.ratio(self.floor),
            "detail": {
                "goals": [goal.to_json() for goal in self.goals],
                "higher_is_better": self.higher_is_better,
                **self.detail,
            },
            "commit": commit(),
            "hardware": hardware(),
            "versions": {**versions(), **self.versions},
            "seed": self.seed,
        }

    def line(self) -> str:
        return json.dumps(rounded(self.to_json()), ensure_ascii=False, separators=(", ", ": "))


def rounded(value: Any) -> Any:
    """Floats with five significant digits: more would pretend to a precision nobody has."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [rounded(item) for item in value]
    return value


def commit() -> str:
    """The checkout's commit, with "-dirty" when files differ from it; "unknown" without git."""
    with suppress(OSError, subprocess.CalledProcessError):
        found = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
        return f"{found}-dirty" if changed else found
    return "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def hardware() -> dict[str, Any]:
    """The machine; `load` is its load average now, by which a busy neighbour shows."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found: dict[str, Any] = {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages / 2**30, 1),
        "kernel": platform.release(),
        "load": [round(load, 2) for load in os.getloadavg()],
    }
    if gpu := _gpu():
        found["gpu"] = gpu
    return found


def _cpu() -> str:
    with suppress(OSError):
        for text in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = text.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _gpu() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    with suppress(OSError, subprocess.CalledProcessError):
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip()
    return None


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("penstock", *PACKAGES):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
