"""A program that answers tasks, in a process of its own that keeps its model between them.

Owns the process and the lines to and from it. Whatever goes wrong with it is a MeasureFailed with
the end of what it said; leaving the block ends it.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.generators import Outcome, Task
from bench.series import MeasureFailed
from bench.serving import ROOT, environment

START_S, TASK_S = 120.0, 300.0


class Player:
    """A context manager. `versions` is there once it is `ready`."""

    def __init__(
        self, command: Sequence[str | Path], *, log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self._log = log
        with log.open("wb") as sink:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                env={**environment(), **(env or {})},
            )
        self._read = b""
        self.versions: Mapping[str, str] = {}

    def ready(self) -> None:
        """Raises MeasureFailed."""
        self.versions = self._line(START_S)["ready"]

    def play(self, task: Task) -> Outcome:
        """Raises MeasureFailed."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(asdict(task)).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise MeasureFailed(self._why("ended")) from error
        found = self._line(TASK_S)
        if "failed" in found:
            raise MeasureFailed(f"cannot run: {found['failed'][:300]}")
        return Outcome(**found)

    def _line(self, seconds: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._read:
                # Lines are single, so silence is what there is to wait for.
                if not selector.select(seconds):
                    raise MeasureFailed(self._why(f"said nothing for {seconds:.0f} s"))
                if not (piece := os.read(self._process.stdout.fileno(), 1 << 20)):
                    raise MeasureFailed(self._why("ended"))
                self._read += piece
        line, _, self._read = self._read.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def _why(self, what: str) -> str:
        said = self._log.read_text(errors="replace").strip().splitlines()
        return f"cannot run: it {what}: {said[-1][:300]}" if said else f"cannot run: it {what}"

    def __enter__(self) -> Player:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()
