"""A server under measurement: started, waited for, metered and stopped, with all its processes.

Owns the process tree of one server and its log. What belongs to it is found by descent and by a
mark in the environment, so that a daemon which left its parent is metered and stopped as well.
Linux only (/proc). Invariant: after `stop` no process of the server lives.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TypeVar

ROOT = Path(__file__).resolve().parent.parent
MARK = "PENSTOCK_BENCH_SERVER"
TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")

T = TypeVar("T")


class ServerFailed(Exception):
    """It ended, or did not become ready in time. `said`: the end of its log."""

    def __init__(self, reason: str, said: str = "") -> None:
        last = said.splitlines()[-1][:200] if said else ""
        super().__init__(f"{reason}: {last}" if last else reason)
        self.said = said


class Server:
    """One server's processes. A context manager; leaving it stops all of them. `core`: the only one
    that they may use."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
        core: int | None = None,
    ) -> None:
        self.name = name
        pinned = [] if core is None else ["taskset", "--cpu-list", str(core)]
        self._log = log
        self._mark = uuid.uuid4().hex
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as sink:
            self._process = subprocess.Popen(
                [*pinned, *(str(part) for part in command)],
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**environment(), **(env or {}), MARK: self._mark},
            )
        self.started = time.monotonic()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def wait(
        self, what: str, condition: Callable[[], T], seconds: float = 60.0, *, every: float = 0.02
    ) -> T:
        """The first true value of `condition`. Raises ServerFailed when the server ends before."""
        while not (found := condition()):
            if self._process.poll() is not None:
                raise ServerFailed(f"exit status {self._process.returncode}", self._tail())
            if time.monotonic() - self.started > seconds:
                raise ServerFailed(f"no {what} within {seconds:.0f} s", self._tail())
            time.sleep(every)
        return found

    def wait_ready(self, url: str, seconds: float = 60.0, *, every: float = 0.02) -> float:
        """Until GET `url` answers 2xx; returns the seconds since the start. Raises ServerFailed."""
        self.wait("readiness", lambda: answers(url), seconds, every=every)
        return time.monotonic() - self.started

    def wait_said(
        self, pattern: str, seconds: float = 60.0, *, every: float = 0.02
    ) -> re.Match[str]:
        """Until its log has a match. Raises ServerFailed."""
        found = self.wait(pattern, lambda: re.search(pattern, self.log), seconds, every=every)
        assert found is not None  # `wait` returns true values only
        return found

    def pids(self) -> list[int]:
        """Every live process of the server, the first one first."""
        return owned(self.pid, self._mark)

    def cpu_seconds(self) -> float:
        """User and system time of the tree so far, ended children that were waited for included."""
        return sum(_cpu_seconds(pid) for pid in self.pids())

    def rss_bytes(self) -> int:
        """Resident memory of the tree; pages that its processes share count once for each."""
        return sum(rss_bytes(pid) for pid in self.pids())

    def stop(self, grace_s: float = 10.0) -> None:
        """SIGTERM to the first process; whatever is left after the grace is killed. Idempotent."""
        mine = self.pids()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(grace_s)
        left = {pid for pid in (*mine, *self.pids()) if self._is_mine(pid)}
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        end = time.monotonic() + grace_s
        while any(map(self._is_mine, left)) and time.monotonic() < end:
            time.sleep(0.005)

    def _is_mine(self, pid: int) -> bool:
        """Still the process that was seen, not another one with its number."""
        return (pid == self.pid and self._process.poll() is None) or _has_mark(pid, self._mark)

    def _tail(self, lines: int = 30) -> str:
        return "\n".join(self.log.splitlines()[-lines:])


def environment() -> dict[str, str]:
    """Ours for every server: one thread for arithmetic, and the checkout importable."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
    }


def python(*arguments: str | Path) -> list[str | Path]:
    return [sys.executable, *arguments]


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(200 <= reply.status < 300)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def owned(leader: int, mark: str) -> list[int]:
    """The leader, its descendants and all processes that carry the mark."""
    parents = _parents()
    found = {pid for pid in parents if _has_mark(pid, mark)}
    if leader in parents:
        found.add(leader)
    grown = True
    while grown:
        children = {pid for pid, parent in parents.items() if parent in found} - found
        found |= children
        grown = bool(children)
    return sorted(found, key=lambda pid: (pid != leader, pid))


def rss_bytes(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    return 0


def _parents() -> dict[int, int]:
    """Every process and its parent; zombies, which hold nothing any more, left out."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            fields = _stat(int(entry))
            if fields and fields[0] != "Z":
                parents[int(entry)] = int(fields[1])
    return parents


def _has_mark(pid: int, mark: str) -> bool:
    with suppress(OSError):
        return f"{MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    return False


def _cpu_seconds(pid: int) -> float:
    fields = _stat(pid)
    return sum(int(field) for field in fields[11:15]) / TICK if fields else 0.0


def _stat(pid: int) -> list[str]:
    """/proc/PID/stat from the state on: what stands before may hold spaces. Empty if it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return []
