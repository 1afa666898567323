"""Whether the process that wrote a record still lives, judged without trusting any wall clock.

Owns the identity of a process: its kernel's boot, its pid namespace, its pid and when that pid
started. Invariant: `alive` answers only where the kernel can know, and None where it cannot.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Life:
    """One process, for ever: none other, before or after, has the same."""

    host: str
    boot: str
    namespace: str
    pid: int
    started: int


class Host:
    """This machine as seen from this process; a fake one stands in for another machine."""

    def life(self) -> Life:
        pid, boot = os.getpid(), self.boot()
        started = _started(pid) if boot else None
        return Life(socket.gethostname(), boot, self.namespace(), pid, started or 0)

    def boot(self) -> str:
        try:
            return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return ""

    def namespace(self) -> str:
        try:
            return os.readlink("/proc/self/ns/pid")
        except OSError:
            return ""

    def uptime(self) -> float:
        """Seconds since boot: moves only forward, and nobody sets it."""
        clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
        return time.clock_gettime(clock)

    def wall(self) -> float:
        """For people to read; nothing is decided by it."""
        return time.time()

    def alive(self, life: Life) -> bool | None:
        """None when it cannot be known from here: another machine, boot or container."""
        boot = self.boot()
        if not boot or life.boot != boot or life.namespace != self.namespace():
            return None
        try:
            os.kill(life.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # it lives, under another user
        try:
            return _started(life.pid) == life.started
        except OSError:
            return None  # the kernel hides other users' processes


def _started(pid: int) -> int | None:
    """When the pid's process started, in ticks since boot; None if it is a zombie. Raises OSError
    where there is no telling."""
    text = Path(f"/proc/{pid}/stat").read_text()
    # The command's name may hold spaces and brackets; what follows the last bracket may not.
    rest = text.rpartition(")")[2].split()
    return None if rest[0] in "ZX" else int(rest[19])
