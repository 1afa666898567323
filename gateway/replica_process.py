"""A replica on this host as the supervisor keeps it: the process and what it runs.

Owns nothing of what the replica does; workers see that over its socket. Invariant: two processes of
the same `recipe` would serve the same.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from gateway.config import ReplicaConfig
from gateway.http_address import command_for
from gateway.process import Backoff, Child, Launch


class ReplicaProcess:
    """`command` serves a native replica when its file and `--listen ADDRESS` are added to it; an
    http one has a command of its own, which runs in `folder`. `renewed`: of an http one, whenever
    its process ended, or another one runs: workers cannot always see that."""

    def __init__(
        self,
        replica: ReplicaConfig,
        runtime: Path,
        command: Sequence[str],
        backoff: Backoff,
        *,
        folder: Path,
        died: Callable[[ReplicaProcess, str, float], None],
        renewed: Callable[[ReplicaProcess], None],
    ) -> None:
        self.name = replica.name
        self.recipe = recipe(replica)
        self.child = Child(replica.name, self._launch, self, backoff)
        self._replica, self._runtime = replica, runtime
        self._command, self._folder = command, folder
        self._died, self._renewed = died, renewed

    def _launch(self) -> Launch:
        replica, runtime = self._replica, self._runtime
        if replica.command is not None:
            return Launch(command_for(replica, runtime), folder=self._folder)
        return Launch((*self._command, str(replica.spawn), "--listen", replica.socket(runtime)))

    async def running(self, child: Child) -> None:
        """Nothing to do with it: it listens, and the workers come."""
        if self._replica.kind == "http":
            self._renewed(self)
        await asyncio.get_running_loop().create_future()

    def died(self, child: Child, how: str, wait_s: float) -> None:
        if self._replica.kind == "http":
            self._renewed(self)
        self._died(self, how, wait_s)


def recipe(replica: ReplicaConfig) -> tuple[str, ...]:
    """What a replica's process is made from: its file and what is in it, or its command."""
    if replica.command is not None:
        return replica.command
    assert replica.spawn is not None
    content = hashlib.blake2b(replica.spawn.read_bytes(), digest_size=16).hexdigest()
    return str(replica.spawn), content
