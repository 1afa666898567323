"""A gateway worker as the supervisor keeps it: its process, its socket and its control channel.

Owns the handshake that makes a fresh process serve (`configure`, then what operators had changed)
and the judgement that a worker cannot start at all. The listening socket outlives every process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from gateway.control import ControlChannel, ControlError, Handlers
from gateway.process import Backoff, Child, Launch

# A fresh worker imports its libraries first, on a machine that may be busy loading models.
CONFIGURE_S = 60.0
CALL_S = 2.0
# An event loop that has not answered for so long will not; its clients are better off elsewhere.
HUNG_S = 30.0
LINGER_S = 5.0
# Starts that may fail before the first one succeeds: more would only repeat the same error.
HOPELESS = 3

log = logging.getLogger("penstock.supervisor")


class Site(Protocol):
    """What a worker needs from its supervisor."""

    @property
    def handlers(self) -> Handlers:
        """The operations that workers may call."""

    def message(self) -> dict[str, Any]:
        """The arguments of `configure`, as they are now."""

    def amendments(self) -> Sequence[tuple[str, dict[str, Any]]]:
        """Operations that a fresh worker has missed: drains and weights."""

    def worker_launched(self, worker: WorkerProcess) -> None: ...

    def worker_ready(self, worker: WorkerProcess) -> None: ...

    def worker_died(self, worker: WorkerProcess, how: str, wait_s: float) -> None: ...

    def hopeless(self, why: str) -> None:
        """A worker cannot start; the gateway is of no use."""


class WorkerProcess:
    """`command` starts a worker when `--listen-fd N --control-fd M` is added to it."""

    def __init__(
        self,
        name: str,
        listening: socket.socket,
        command: Sequence[str],
        site: Site,
        backoff: Backoff,
    ) -> None:
        self.name = name
        self.ready = False
        self.life = 0  # grows with each process
        self.child = Child(name, self._launch, self, backoff)
        self._listening, self._command, self._site = listening, command, site
        self._channel: ControlChannel | None = None
        self._ours: socket.socket | None = None
        self._answered = 0.0
        self.configured = asyncio.Event()  # some process of it was ready once

    async def call(
        self, op: str, /, *, within_s: float | None = None, **arguments: Any
    ) -> dict[str, Any]:
        """Raises ControlError, also when it does not answer within that time, else `CALL_S`."""
        within_s = within_s if within_s is not None else CALL_S
        if self._channel is None or not self.ready:
            raise ControlError(f"{self.name} is {self.state}", status=503, code="not_ready")
        try:
            async with asyncio.timeout(within_s):
                answer = await self._channel.call(op, **arguments)
        except TimeoutError:
            self._judge_silence()
            raise ControlError(
                f"{self.name} did not answer within {within_s:g} s", status=504, code="timeout"
            ) from None
        self._answered = time.monotonic()
        return answer

    async def stop(self, grace_s: float) -> None:
        """Let its requests end within the grace; then it is gone, one way or the other."""
        self.child.no_restart()
        if self.ready:
            try:
                await self.call("stop", within_s=grace_s + 1.0, grace_s=grace_s)
                await self.child.gone(2.0)
            except ControlError as error:
                log.warning("%s could not be stopped in peace: %s", self.name, error)
        await self.child.stop(1.0)
        self._close_ours()

    @property
    def state(self) -> str:
        return "ready" if self.ready else "starting" if self.child.pid else self.child.state

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "pid": self.child.pid,
            "state": self.state,
            "restarts": self.child.restarts,
            "rss_mb": resident_mb(self.child.pid),
        }

    # ---------------------------------------------------------------------------- for its child

    def _launch(self) -> Launch:
        ours, theirs = socket.socketpair()
        self._ours = ours
        self.life += 1

        def launched() -> None:
            theirs.close()
            self._site.worker_launched(self)

        inherited = (self._listening.fileno(), theirs.fileno())
        flags = ("--listen-fd", str(inherited[0]), "--control-fd", str(inherited[1]))
        return Launch((*self._command, *flags), inherited, started=launched)

    async def running(self, child: Child) -> None:
        assert self._ours is not None
        ours, self._ours = self._ours, None
        channel = await ControlChannel.open(ours, self._site.handlers, peer=self.name)
        try:
            await self._configure(channel)
            await channel.closed.wait()
            # The process ends with its channel; one that lingers is of no use to anybody.
            await asyncio.sleep(LINGER_S)
            child.kill()
        finally:
            self.ready, self._channel = False, None
            channel.close()

    def died(self, child: Child, how: str, wait_s: float) -> None:
        self._close_ours()
        if not self.configured.is_set() and child.restarts >= HOPELESS:
            said = "".join(f"\n  {line}" for line in child.tail) or " nothing"
            why = f"{self.name} {how}, {HOPELESS} times before it could serve; it said:{said}"
            self._site.hopeless(why)
            return
        self._site.worker_died(self, how, wait_s)

    def _close_ours(self) -> None:
        """Our end of the channel of a process that was never started."""
        if self._ours is not None:
            self._ours.close()
            self._ours = None

    async def _configure(self, channel: ControlChannel) -> None:
        try:
            async with asyncio.timeout(CONFIGURE_S):
                await self._bring_up_to_date(channel)
        except (ControlError, TimeoutError) as error:
            if channel.closed.is_set():  # its death says more
                return
            why = str(error) or f"it was not ready within {CONFIGURE_S:g} s"
            if self.configured.is_set():
                log.error("%s cannot serve: %s", self.name, why)
            else:
                self._site.hopeless(f"{self.name} cannot serve: {why}")
            self.child.kill()
            return
        self._channel, self.ready = channel, True
        self.configured.set()
        self._answered = time.monotonic()
        self._site.worker_ready(self)

    async def _bring_up_to_date(self, channel: ControlChannel) -> None:
        """Operators may change things while a worker starts: it takes clients in when nothing is
        new to it, and ends when nothing became new meanwhile."""
        told, done = self._site.message(), list[tuple[str, dict[str, Any]]]()
        accepts = False
        await channel.call("configure", **told)
        while True:
            if (message := self._site.message()) != told:
                await channel.call("reconfigure", **message)
                told = message
            elif missed := [change for change in self._site.amendments() if change not in done]:
                await channel.call(missed[0][0], **missed[0][1])
                done.append(missed[0])
            elif not accepts:
                await channel.call("accept")
                accepts = True
            else:
                return

    def _judge_silence(self) -> None:
        if time.monotonic() - self._answered > HUNG_S:
            log.error("%s has not answered for %g s: killed", self.name, HUNG_S)
            self.child.kill()


def resident_mb(pid: int) -> float | None:
    """Memory that a process holds; None where the system does not tell so."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return None
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)
