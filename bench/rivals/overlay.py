"""Rivals that are libraries on top of ours: only what we lack is installed, in a folder of its own.

Owns that folder under .cache/rivals. Torch, transformers and numpy are our own, so that every
contender computes with the same build; nothing is added to our environment.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.contenders import Contender
from bench.rivals.rival import Rival
from bench.serving import ServerFailed


def no_server(folder: Path, rival: Rival) -> Contender:
    """For a program that runs once and ends."""
    raise ServerFailed(f"{rival.name} serves nothing")


@dataclass(frozen=True, slots=True)
class OverlayRival(Rival):
    """Run with `env` by our own interpreter."""

    @property
    def env(self) -> dict[str, str]:
        known = os.environ.get("PYTHONPATH", "")
        return {
            "PYTHONPATH": f"{self._packages}{os.pathsep}{known}" if known else str(self._packages)
        }

    @property
    def _packages(self) -> Path:
        return self.environment / "packages"

    def install(self) -> None:
        """Raises InstallFailed."""
        shutil.rmtree(self.environment, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        where = ["--no-deps", "--target", str(self._packages)]
        self.execute([*pip, *where, "-r", str(self.requirements)])
        (self.environment / "installed.txt").write_text(self.requirements.read_text())
