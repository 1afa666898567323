"""The loops of a load: closed (send when answered) and open (send at intended times).

Owns the connections, the accounting and the clock of one generator process. In an open loop the
latency counts from the intended time, also while a request waits for a free connection or for the
generator itself: nothing is omitted because the server was slow (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from bench.load import websocket
from bench.load.arrivals import Due, arrivals
from bench.load.connection import Connection, render
from bench.load.events import EventConnection
from bench.load.histogram import Histogram
from bench.load.spec import LoadReport, LoadSpec
from bench.load.ticker import Ticker

RECONNECT_S = 0.05
SWEEP_S = 0.1
# Requests that start together at most, when the generator is behind.
TURN = 64
# What is under way when a load is stopped gets so long; whoever stopped it is waiting.
STOPPED_S = 0.5
# Connections that are opened together: more could overflow a server's accept queue.
OPENING = 128
# Of what a bad answer said.
SAID_BYTES = 300


class CannotConnect(Exception):
    """A connection could not be opened at the start."""


class Drive:
    """One load. `run` once. `progress` gets what happened since its last call, ten times a second
    at most."""

    def __init__(
        self, spec: LoadSpec, progress: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        self._spec, self._progress = spec, progress
        self._request = render(spec) if spec.mode != "ws" else websocket.render(spec)
        self._report = LoadReport()
        self._recent = Histogram()
        self._loop = asyncio.get_running_loop()
        self._secure = _secure(spec)
        self._connections: set[Any] = set()
        self._idle: deque[Any] = deque()
        # Requests that are due and have no connection yet: since when, whether counted, the bytes.
        self._waiting: deque[tuple[float, bool, bytes]] = deque()
        self._opening: set[asyncio.Task[None]] = set()
        self._due: Due = iter(())
        self._ticker = Ticker(self._loop, self._arrive)
        self._over = False
        self._stopped = asyncio.Event()
        self._idle_now = asyncio.Event()
        self._start = self._next = self._from = self._until = 0.0
        self._upcoming = b""
        self._failed_told = self._waiting_told = 0

    def stop(self) -> None:
        """End the load now: `run` returns what was found until then."""
        self._stopped.set()

    async def run(self) -> LoadReport:
        """Raises CannotConnect, ValueError."""
        spec, report = self._spec, self._report
        await self._open_all()
        start = time.monotonic()
        self._from = start + spec.warmup_s
        self._until = self._from + spec.seconds
        metered: tuple[float, float] | None = None
        if spec.open_loop:
            self._start = start
            self._due = arrivals(
                spec, self._request, render if spec.mode != "ws" else websocket.render
            )
            self._advance()
            self._ticker.at(self._next)
        else:
            for connection in list(self._idle):
                self._idle.remove(connection)
                self._send(connection, time.monotonic())
        while (now := time.monotonic()) < self._until and not self._stopped.is_set():
            if metered is None and now >= self._from:
                metered = now, time.process_time()
            await self._pause(min(SWEEP_S, self._until - now))
            self._sweep()
        if metered is not None:
            wall = time.monotonic() - metered[0]
            report.cpu_share = (time.process_time() - metered[1]) / wall
        if self._stopped.is_set() and now < self._until:
            report.interrupted = True
            self._until = now
        report.seconds = max(0.0, self._until - self._from)
        await self._finish()
        return report

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), seconds)

    # --------------------------------------------------------------------------- the two loops

    def _send(
        self,
        connection: Any,
        since: float,
        counted: bool | None = None,
        request: bytes | None = None,
    ) -> None:
        connection.counted = since >= self._from if counted is None else counted
        if connection.counted:
            self._report.sent += 1
        connection.send(self._request if request is None else request, since)

    def _advance(self) -> None:
        """To the next request that will be due; none: never."""
        after, self._upcoming = next(self._due, (float("inf"), b""))
        self._next = self._start + after

    def _arrive(self) -> None:
        """What is due, but not all of it at once: answers have to be read meanwhile."""
        now = time.monotonic()
        for _ in range(TURN):
            since = self._next
            if since > now or since >= self._until:
                break
            counted = since >= self._from
            if counted:
                self._report.late.record(int((now - since) * 1e9))
            if self._idle:
                self._send(self._idle.popleft(), since, counted, self._upcoming)
            else:
                self._waiting.append((since, counted, self._upcoming))
                self._report.backlog = max(self._report.backlog, len(self._waiting))
            self._advance()
        if self._next < self._until:
            self._ticker.at(self._next)

    def _free(self, connection: Any) -> None:
        """It can take a request: the next one of its loop, if there is one."""
        if not self._spec.open_loop:
            if not self._over:
                self._send(connection, time.monotonic())
                return
        elif self._waiting:
            self._send(connection, *self._waiting.popleft())
            return
        self._idle.append(connection)
        if self._over:
            self._idle_now.set()

    # ---------------------------------------------------------------- what connections tell us

    def answered(self, connection: Any, status: int) -> None:
        if connection.counted:
            self._count(connection, status)
        if connection.usable:
            self._free(connection)
        else:
            self._replace(connection)

    def _count(self, connection: Any, status: int) -> None:
        report = self._report
        now = time.monotonic()
        if not self._spec.open_loop and now > self._until:
            # A closed loop counts what ended in its time, and no request that did not.
            report.sent -= 1
            return
        key = str(status)
        report.statuses[key] = report.statuses.get(key, 0) + 1
        if 200 <= status < 300:
            report.ok += 1
            nanoseconds = int((now - connection.since) * 1e9)
            report.latency.record(nanoseconds)
            if self._progress is not None:
                self._recent.record(nanoseconds)
        elif key not in report.said:
            report.said[key] = _text(connection.said)

    def broken(self, connection: Any, why: str) -> None:
        if connection.counted:
            self._failed(why, connection.since)
        self._replace(connection)

    def gone(self, connection: Any) -> None:
        if connection in self._idle:
            self._idle.remove(connection)
        self._replace(connection)

    def told(self, connection: Any, rows: int) -> None:
        if connection.counted and rows:
            self._report.timed += 1
            self._report.batches += 1 / rows

    def events(self, connection: Any, count: int, waited: float, first: bool) -> None:
        if connection.counted:
            self._report.events += count
            histogram = self._report.first if first else self._report.gaps
            histogram.record(int(waited * 1e9))

    def counted_tokens(self, connection: Any, count: int) -> None:
        if connection.counted:
            self._report.tokens += count

    def _failed(self, why: str, since: float) -> None:
        """Unanswered: it took at least so long, which is what the percentiles get."""
        self._report.errors[why] = self._report.errors.get(why, 0) + 1
        self._report.latency.record(int((time.monotonic() - since) * 1e9))

    # ------------------------------------------------------------------------------ connections

    async def _open_all(self) -> None:
        left = self._spec.connections
        while left:
            opening = [self._connect() for _ in range(min(left, OPENING))]
            left -= len(opening)
            found = await asyncio.gather(*opening, return_exceptions=True)
            failures = [error for error in found if isinstance(error, BaseException)]
            if failures:
                raise CannotConnect(f"cannot connect to {self._spec.url}: {failures[0]}")

    async def _connect(self) -> None:
        """Raises OSError, as which a timeout counts."""
        parts = urlsplit(self._spec.url)
        port = parts.port or (443 if self._secure else 80)
        transport = None
        try:
            async with asyncio.timeout(self._spec.timeout_s):
                transport, connection = await self._loop.create_connection(
                    self._make, parts.hostname or "", port, ssl=self._secure
                )
                if isinstance(connection, websocket.SocketConnection):
                    await connection.opened
        except TimeoutError as error:
            if transport is not None:
                transport.abort()
            raise OSError(f"not open within {self._spec.timeout_s:g} s") from error
        self._connections.add(connection)
        self._idle.append(connection)

    def _make(self) -> Any:
        mode = self._spec.mode
        if mode == "ws":
            return websocket.SocketConnection(self, self._spec)
        if mode == "http":
            return Connection(self, timing=self._spec.timing)
        return EventConnection(self, openai=mode == "openai")

    def _replace(self, connection: Any) -> None:
        self._forget(connection)
        if self._over and not self._waiting:
            self._idle_now.set()
            return
        self._report.reconnects += 1
        task = self._loop.create_task(self._reconnect())
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _reconnect(self) -> None:
        while True:
            try:
                await self._connect()
            except OSError:
                self._report.refused += 1
                await asyncio.sleep(RECONNECT_S)
            else:
                self._free(self._idle.pop())
                return

    def _forget(self, connection: Any) -> None:
        if connection in self._connections:
            self._connections.remove(connection)
            self._report.received += connection.received

    def _sweep(self) -> None:
        """Requests past their time are given up; who watches is told how it goes."""
        limit = time.monotonic() - self._spec.timeout_s
        for connection in [c for c in self._connections if c.busy and c.sent < limit]:
            connection.abandon("timeout")
        if self._progress is not None:
            failed = self._report.failed
            self._progress(
                {
                    "ok": self._recent.count,
                    "failed": failed - self._failed_told,
                    "latency": self._recent.to_json(),
                    "waiting": len(self._waiting) - self._waiting_told,
                }
            )
            self._recent, self._failed_told = Histogram(), failed
            self._waiting_told = len(self._waiting)

    async def _finish(self) -> None:
        """An open loop's last requests get their time; then everything is closed."""
        self._over = True
        end = time.monotonic() + (STOPPED_S if self._report.interrupted else self._spec.timeout_s)
        left_at = "interrupted" if self._report.interrupted else "timeout"
        while self._unanswered() and time.monotonic() < end:
            self._idle_now.clear()
            left = min(SWEEP_S, max(0.0, end - time.monotonic()))
            try:
                await asyncio.wait_for(self._idle_now.wait(), left)
            except TimeoutError:
                self._sweep()
        for task in self._opening:
            task.cancel()
        for since, counted, _ in self._waiting:
            if counted:
                self._report.sent += 1
                self._failed("never sent", since)
        self._waiting.clear()
        for connection in list(self._connections):
            if connection.busy and not self._spec.open_loop:
                self._report.sent -= int(connection.counted)
                connection.counted = False
            connection.abandon(left_at)
            self._forget(connection)
        self._ticker.close()

    def _unanswered(self) -> bool:
        if not self._spec.open_loop:
            return False  # what is under way is not counted
        return bool(self._waiting) or any(c.busy for c in self._connections)


def _secure(spec: LoadSpec) -> ssl.SSLContext | None:
    if urlsplit(spec.url).scheme not in ("https", "wss"):
        return None
    context = ssl.create_default_context()
    if spec.insecure:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _text(piece: bytes) -> str:
    """Of an answer's last piece, what people may read: the body, in a line."""
    body = piece.partition(b"\r\n\r\n")[2] if piece.startswith(b"HTTP/") else piece
    return " ".join(body[:SAID_BYTES].decode(errors="replace").split())
