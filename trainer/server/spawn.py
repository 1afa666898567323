"""Workers on this machine, started by the server and started again when they die.

Owns the processes. A worker that dies young again and again is left alone. Invariant: none outlives
the server: they are ended at its end, and the kernel ends them if it is killed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from trainer.lifeline import PARENT
from trainer.metrics import Reporter
from trainer.server.address import TOKEN

# After so many starts a worker's trouble is its own.
STARTS = 5


class Crew:
    """`argv` are the arguments of each worker. `launch` is for tests."""

    def __init__(
        self,
        count: int,
        argv: Sequence[str],
        token: str,
        reporter: Reporter,
        launch: Callable[..., subprocess.Popen[bytes]] = subprocess.Popen,
    ) -> None:
        self._argv, self._token = list(argv), token
        self._reporter, self._launch = reporter, launch
        self._starts = [0] * count
        self._members: list[subprocess.Popen[bytes] | None] = [None] * count

    def tend(self) -> None:
        """Starts whoever is missing; call it again and again."""
        for index, member in enumerate(self._members):
            if member is not None:
                status = member.poll()
                if status is None:
                    continue
                self._members[index] = None
                if status:
                    text = f"! worker {member.pid} ended with status {status}"
                    self._reporter.event("worker_ended", text, pid=member.pid, status=status)
                else:
                    self._starts[index] = STARTS  # it was told that the run is over
            if self._starts[index] < STARTS:
                self._starts[index] += 1
                self._members[index] = self._start()

    @property
    def spent(self) -> bool:
        """Whether all of them died too often, where there were any."""
        gone = all(member is None for member in self._members)
        return bool(self._members) and gone and min(self._starts) >= STARTS

    def _start(self) -> subprocess.Popen[bytes]:
        environ = {**os.environ, TOKEN: self._token, PARENT: str(os.getpid())}
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            environ.pop(name, None)
        command = [sys.executable, "-m", "trainer", "worker", *self._argv]
        return self._launch(command, env=environ, stdin=subprocess.DEVNULL)

    def close(self, patience_s: float = 2.0) -> None:
        until = time.monotonic() + patience_s
        for member in self._members:
            if member is None:
                continue
            try:
                member.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                member.kill()
                member.wait()
