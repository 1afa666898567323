"""An open loop at a constant rate that keeps every request: when it was due, when it ended, how.

Owns its connections, in the process that looks at the figures: for rates that cost it little. What
is due waits for no free connection; more are opened. Invariant: every request that was due before
the end is in the list exactly once, answered or broken.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from bench.load.connection import Connection, render
from bench.load.spec import LoadSpec
from bench.load.ticker import Ticker

# Who made an answer: the scripted upstream, or a replica of ours.
_WHO = re.compile(rb"\r\nx-(?:upstream|served-by): ([^\r]+)")
OPENED_FIRST = 64


@dataclass(frozen=True, slots=True)
class Seen:
    """Seconds of `time.monotonic`. `how`: the status, or what broke; `who` made the answer."""

    due: float
    ended: float
    how: str
    who: str

    @property
    def good(self) -> bool:
        return self.how[0] == "2"

    @property
    def seconds(self) -> float:
        return self.ended - self.due


class _Watched(Connection):
    __slots__ = ("who",)

    def data_received(self, data: bytes) -> None:
        if (found := _WHO.search(data)) is not None:
            self.who = found[1].decode()
        super().data_received(data)


class Watch:
    """`run` once, on a loop of its own."""

    def __init__(self, spec: LoadSpec) -> None:
        assert spec.rate is not None
        self._spec, self._every = spec, 1 / spec.rate
        self._request = render(spec)
        self._loop = asyncio.get_running_loop()
        self._idle: list[_Watched] = []
        self._live: set[_Watched] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._ticker = Ticker(self._loop, self._arrive)
        self._next = self._until = 0.0
        self.seen: list[Seen] = []

    async def run(self, script: Callable[[], Awaitable[None]]) -> list[Seen]:
        """The load lasts as long as `script` does; then what is under way may end."""
        for _ in range(OPENED_FIRST):
            self._idle.append(await self._connect())
        self._next = time.monotonic() + self._every
        self._until = float("inf")
        self._ticker.at(self._next)
        try:
            await script()
        finally:
            self._until = time.monotonic()
            await self._finish()
        return self.seen

    async def _finish(self) -> None:
        end = self._until + self._spec.timeout_s
        # One look a while: there is no event for "all of them".
        while (self._opening or any(c.busy for c in self._live)) and time.monotonic() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for connection in list(self._live):
            connection.abandon("timeout")
        self._ticker.close()

    def _arrive(self) -> None:
        now = time.monotonic()
        while self._next <= now and self._next < self._until:
            self._send(self._next)
            self._next += self._every
        if self._next < self._until:
            self._ticker.at(self._next)

    def _send(self, due: float) -> None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                connection.who = ""
                connection.send(self._request, due)
                return
        task = self._loop.create_task(self._send_on_new(due))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _send_on_new(self, due: float) -> None:
        try:
            connection = await self._connect()
        except OSError as error:
            self.seen.append(Seen(due, time.monotonic(), f"refused: {error}", ""))
        else:
            connection.who = ""
            connection.send(self._request, due)

    async def _connect(self) -> _Watched:
        parts = urlsplit(self._spec.url)
        _, connection = await self._loop.create_connection(
            lambda: _Watched(self), parts.hostname or "", parts.port or 80
        )
        self._live.add(connection)
        return connection

    # ---------------------------------------------------------------- what connections tell us

    def answered(self, connection: Connection, status: int) -> None:
        assert isinstance(connection, _Watched)
        self.seen.append(Seen(connection.since, time.monotonic(), str(status), connection.who))
        if connection.usable:
            self._idle.append(connection)
        else:
            self._live.discard(connection)

    def broken(self, connection: Connection, why: str) -> None:
        assert isinstance(connection, _Watched)
        self._live.discard(connection)
        self.seen.append(Seen(connection.since, time.monotonic(), why, ""))

    def gone(self, connection: Connection) -> None:
        assert isinstance(connection, _Watched)
        self._live.discard(connection)

    def told(self, connection: Connection, rows: int) -> None: ...
