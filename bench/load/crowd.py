"""The other end of `many`: starts it, waits until all of its connections are up, and ends it.

Owns its process. Invariant: when the context is left, its connections are closed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from types import TracebackType

from bench.load.spec import LoadSpec
from bench.series import MeasureFailed
from bench.serving import ROOT


class Crowd:
    """`spec.connections` of its mode, while the context lasts. Raises MeasureFailed."""

    def __init__(self, spec: LoadSpec) -> None:
        self._spec = spec
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.load.many"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Crowd:
        try:
            said = self._say(json.dumps(self._spec.to_json()))
            if said != f"held {self._spec.connections}":
                raise MeasureFailed(f"{self._spec.connections} of {self._spec.mode}: {said}")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def look(self) -> tuple[int, int]:
        """Events so far, and how many connections have ended."""
        words = self._say("look").split()
        if len(words) != 4 or words[::2] != ["events", "ended"]:
            raise MeasureFailed(f"the holder said {' '.join(words) or 'nothing'}")
        return int(words[1]), int(words[3])

    def _say(self, text: str) -> str:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(text + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip() or "the holder ended"

    def _end(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait(30)
