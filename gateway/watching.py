"""A configuration whose files are looked at, so that it is read again when one of them has changed.

Owns what was seen of them. It reads none: whether the change is good is found out by who is told.
Invariant: a file is not read while it is being written, as far as two looks can tell.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from gateway.settings import Settings

# Where nothing is to be watched: how soon it is noticed that something is.
IDLE_S = 1.0

Stamp = dict[Path, tuple[int, int, int] | None]


class Watching:
    """`settings()`: those that hold now. `changed()` is called when a file of theirs has changed
    and stayed as it is for one look."""

    def __init__(
        self, settings: Callable[[], Settings], changed: Callable[[], Awaitable[None]]
    ) -> None:
        self._settings, self._changed = settings, changed
        self._known = self._seen = self._stamp()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            every = self._settings().config.server.watch_s
            await asyncio.sleep(every or IDLE_S)
            if self.look(watched=every is not None):
                await self._changed()

    def look(self, *, watched: bool) -> bool:
        """Whether what is there now is to be read."""
        before, self._seen = self._seen, self._stamp()
        if not watched:
            self._known = self._seen
        if self._seen == self._known or self._seen != before:
            return False
        self._known = self._seen
        return True

    def _stamp(self) -> Stamp:
        config = self._settings().config
        spawned = [replica.spawn for _, replica in config.replicas() if replica.spawn is not None]
        return {path: _of(path) for path in (config.path, *spawned)}


def _of(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
