"""A native replica on this host as the supervisor keeps it: the process and the file it runs.

Owns nothing of what the replica does; workers see that over the wire. Invariant: two processes of
the same `recipe` would serve the same.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from gateway.config import ReplicaConfig
from gateway.process import Backoff, Child, Launch


class ReplicaProcess:
    """`command` serves when the file and `--listen ADDRESS` are added to it."""

    def __init__(
        self,
        replica: ReplicaConfig,
        address: str,
        command: Sequence[str],
        backoff: Backoff,
        *,
        died: Callable[[ReplicaProcess, str, float], None],
    ) -> None:
        assert replica.spawn is not None
        self.name, self.address = replica.name, address
        self.recipe = recipe(replica.spawn)
        self.child = Child(replica.name, self._launch, self, backoff)
        self._command = (*command, str(replica.spawn), "--listen", address)
        self._died = died

    def _launch(self) -> Launch:
        return Launch(self._command)

    async def running(self, child: Child) -> None:
        """Nothing to do with it: it listens, and the workers come."""
        await asyncio.get_running_loop().create_future()

    def died(self, child: Child, how: str, wait_s: float) -> None:
        self._died(self, how, wait_s)


def recipe(spawn: Path) -> tuple[str, str]:
    """What a replica's process is made from: its file, and what is in it."""
    return str(spawn), hashlib.blake2b(spawn.read_bytes(), digest_size=16).hexdigest()
