"""The other end of `holder`: starts it, waits until all connections are held, and ends it.

Owns the holder's process. Invariant: when the context is left, its connections are closed.
"""

from __future__ import annotations

import subprocess
import sys
from types import TracebackType
from urllib.parse import urlsplit

from bench.series import MeasureFailed
from bench.serving import ROOT


class Holding:
    """`count` idle connections to the server at `base`, while the context lasts. Each one had GET
    `path` answered. Raises MeasureFailed."""

    def __init__(self, base: str, path: str, count: int) -> None:
        parts = urlsplit(base)
        arguments = [str(parts.hostname), str(parts.port), path, str(count)]
        self._count = count
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.load.holder", *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Holding:
        try:
            self._expect(f"held {self._count}")
        except MeasureFailed:
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

    def ask(self) -> None:
        """One more request on a held connection. Raises MeasureFailed."""
        assert self._process.stdin is not None
        self._process.stdin.write("ask\n")
        self._process.stdin.flush()
        self._expect("answered")

    def _expect(self, wanted: str) -> None:
        assert self._process.stdout is not None
        said = self._process.stdout.readline().strip()
        if said != wanted:
            raise MeasureFailed(f"{self._count} idle connections: {said or 'the holder ended'}")

    def _end(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait(30)
