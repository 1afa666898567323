"""A child process that is kept running: started again when it dies, with back-off, until stopped.

Owns the process, the pipe that its output comes through, and nothing of what it does. Invariants: a
child never outlives this process (Linux; elsewhere it may, when this one is killed with SIGKILL),
and after `run` has returned no process of it is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import random
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

MAX_LINE = 8192  # a longer line of output is cut into several
TAIL = 30  # lines of output kept to explain a death
_PR_SET_PDEATHSIG = 1

log = logging.getLogger("penstock.supervisor")


class Backoff:
    """How long to wait before the next start. The first death after a stable run costs nothing;
    repeated ones wait `base`, doubling up to `cap` seconds, each between half and all of it, so
    that replicas that died together do not come back together."""

    def __init__(
        self,
        rng: random.Random,
        *,
        base: float = 0.5,
        cap: float = 30.0,
        stable_s: float = 10.0,
    ) -> None:
        self._rng, self._base, self._cap, self._stable_s = rng, base, cap, stable_s
        self._deaths = 0

    def died(self, ran_s: float) -> float:
        """Seconds to wait, now that a process has died that ran for `ran_s`."""
        if ran_s >= self._stable_s:
            self._deaths = 0
        self._deaths += 1
        if self._deaths == 1:
            return 0.0
        # The exponent is bounded: 2.0 ** 1100 is an error, not a long time.
        longest = min(self._cap, self._base * 2.0 ** min(self._deaths - 2, 60))
        return longest * self._rng.uniform(0.5, 1.0)


@dataclass(frozen=True, slots=True)
class Launch:
    """One start of a process. `inherited` descriptors keep their numbers in it; `started` is called
    in the parent once it runs, or once it could not be started. `folder`: where it runs; left out,
    where we do."""

    command: Sequence[str]
    inherited: Sequence[int] = ()
    environ: Mapping[str, str] | None = None
    folder: Path | None = None
    started: Callable[[], None] | None = None


class Watcher(Protocol):
    """Who wants to know. Called from the loop, never at the same time."""

    async def running(self, child: Child) -> None:
        """Works with the process while it lives; cancelled when it dies or stops. An exception ends
        the process."""

    def died(self, child: Child, how: str, wait_s: float) -> None:
        """It died by itself and is started again after `wait_s`."""


class Child:
    """`launch` makes each start anew. `state`: starting, running, waiting (to start), stopped."""

    def __init__(
        self, name: str, launch: Callable[[], Launch], watcher: Watcher, backoff: Backoff
    ) -> None:
        self.name = name
        self.state = "starting"
        self.pid = 0
        self.restarts = 0
        self.how = self.said = ""  # how the last process ended, and its last words
        self.tail: deque[str] = deque(maxlen=TAIL)
        self._launch, self._watcher, self._backoff = launch, watcher, backoff
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._log = logging.getLogger(f"penstock.{name}")

    async def run(self) -> None:
        """Keep a process running until `stop`; cancelled, it kills the one that runs."""
        loop = asyncio.get_running_loop()
        try:
            while not self._stopping.is_set():
                started = loop.time()
                await self._live()
                if self._stopping.is_set():
                    break
                wait_s = self._backoff.died(loop.time() - started)
                self.state = "waiting"
                self.restarts += 1
                self._watcher.died(self, self.how, wait_s)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._stopping.wait()
        finally:
            self.state = "stopped"

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, then SIGKILL after `grace_s`; it is not started again. Returns when it is gone
        (`run` returns soon after)."""
        self._stopping.set()
        if self._process is not None and self._process.returncode is None:
            # Not `send_signal`: it polls, and may take the exit status from asyncio's watcher.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGTERM)
        if not await self.gone(grace_s):
            log.warning("%s did not stop within %g s: killed", self.name, grace_s)
            self.kill()
            await self.gone(None)

    def no_restart(self) -> None:
        """Let it end by itself; it is not started again."""
        self._stopping.set()

    async def gone(self, within_s: float | None) -> bool:
        """Whether the process has ended, waiting so long for it."""
        process = self._process
        if process is None:
            return True
        try:
            async with asyncio.timeout(within_s):
                await process.wait()
        except TimeoutError:
            return False
        return True

    def kill(self) -> None:
        """SIGKILL for the process and for what it started: it leads a group of its own."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _live(self) -> None:
        """One process, from its start to its end."""
        self.state = "starting"
        self.tail.clear()
        launch = self._launch()
        output = _Lines(self._line)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *launch.command,
                stdin=subprocess.DEVNULL,
                stdout=output.writing,
                stderr=output.writing,
                pass_fds=tuple(launch.inherited),
                env=launch.environ,
                cwd=launch.folder,
                # A Ctrl-C in the terminal is ours to pass on, after the requests have ended.
                start_new_session=True,
                preexec_fn=_die_with_parent(os.getpid()),
            )
        except (OSError, subprocess.SubprocessError) as error:
            self.how = f"could not be started: {error}"
            output.close()
            return
        finally:
            if launch.started is not None:
                launch.started()
        output.listen()
        self.pid, self.state = self._process.pid, "running"
        if self._stopping.is_set():  # `stop` came while it was started
            self.kill()
        watching = asyncio.ensure_future(self._watcher.running(self))
        watching.add_done_callback(self._watched)
        try:
            self.how = _how(await self._process.wait())
        finally:
            self.kill()
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await self._process.wait()
            output.close()
            self.said = self.tail[-1] if self.tail else ""
            self.pid, self._process = 0, None

    def _watched(self, watching: asyncio.Future[None]) -> None:
        if not watching.cancelled() and (error := watching.exception()) is not None:
            log.error("%s: %s", self.name, error, exc_info=error)
            self.kill()

    def _line(self, line: str) -> None:
        self.tail.append(line)
        self._log.info("%s", line)


class _Lines:
    """A pipe whose other end is a process's output; what comes is cut into lines."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._reading, self.writing = os.pipe()
        os.set_blocking(self._reading, False)
        self._on_line, self._rest = on_line, b""
        self._listening = False

    def listen(self) -> None:
        """The process has its own copy of the writing end by now; ours would hide its end."""
        os.close(self.writing)
        self.writing = -1
        self._listening = True
        asyncio.get_running_loop().add_reader(self._reading, self._readable)

    def close(self) -> None:
        """Take what is still in the pipe; a grandchild may hold it open, so it is not awaited."""
        if self._listening:
            self._readable()
        self._stop_listening()
        if self._rest:
            self._emit(self._rest)
        for end in (self._reading, self.writing):
            if end >= 0:
                os.close(end)
        self._reading = self.writing = -1

    def _stop_listening(self) -> None:
        if self._listening:
            asyncio.get_running_loop().remove_reader(self._reading)
            self._listening = False

    def _readable(self) -> None:
        try:
            # As much as a pipe holds: what a dead process has left comes with one call.
            data = os.read(self._reading, 1 << 20)
        except BlockingIOError:
            return
        if not data:
            self._stop_listening()
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._emit(line)
        while len(self._rest) > MAX_LINE:
            self._emit(self._rest[:MAX_LINE])
            self._rest = self._rest[MAX_LINE:]

    def _emit(self, line: bytes) -> None:
        for at in range(0, len(line) or 1, MAX_LINE):
            text = line[at : at + MAX_LINE].decode("utf-8", "replace").rstrip()
            if text:
                self._on_line(text)


def _how(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"exited with status {code}"


def _die_with_parent(parent: int) -> Callable[[], None] | None:
    """Runs in the child before its program: the kernel kills it when the parent dies."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return prepare
