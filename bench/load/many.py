"""Many event streams or WebSockets at once, held open by a process of its own.

`python -m bench.load.many`, with a LoadSpec as a line of JSON on standard input: opens its
connections, says `held N` once every stream has had an event (or every socket its handshake), then
for each further line `events N ended N`; ends when the input does. Owns the connections.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

import uvloop

from bench.load.connection import render
from bench.load.events import EventConnection
from bench.load.holder import raise_file_limit
from bench.load.spec import LoadSpec
from bench.load.websocket import SocketConnection

TOGETHER = 100


class Many:
    """The owner of all of them. `ended`: how many have, in whatever way."""

    def __init__(self, spec: LoadSpec) -> None:
        self._spec, self._request = spec, render(spec) if spec.mode != "ws" else b""
        self.started = 0
        self._all_started = asyncio.Event()
        self.seen = self.ended = 0
        self.how: Counter[str] = Counter()  # they ended
        self._all: list[Any] = []

    async def open(self) -> None:
        """Raises OSError, TimeoutError."""
        left = self._spec.connections
        while left:
            count = min(left, TOGETHER)
            self._all += await asyncio.gather(*(self._one() for _ in range(count)))
            left -= count
        async with asyncio.timeout(self._spec.timeout_s):
            await self._all_started.wait()

    async def _one(self) -> Any:
        parts = urlsplit(self._spec.url)
        loop = asyncio.get_running_loop()
        socket = self._spec.mode == "ws"
        _, connection = await loop.create_connection(
            lambda: (
                SocketConnection(self, self._spec) if socket else EventConnection(self, openai=True)
            ),
            parts.hostname or "",
            parts.port or 80,
        )
        if isinstance(connection, SocketConnection):
            await connection.opened
            self._begun()
        else:
            connection.send(self._request, time.monotonic())
        return connection

    def _begun(self) -> None:
        self.started += 1
        if self.started == self._spec.connections:
            self._all_started.set()

    def events(self, connection: Any, count: int, waited: float, first: bool) -> None:
        self.seen += count
        if first:
            self._begun()

    def answered(self, connection: Any, status: int) -> None:
        self.ended += 1  # a stream that is over is held no longer
        self.how[str(status)] += 1

    def broken(self, connection: Any, why: str) -> None:
        self.ended += 1
        self.how[why] += 1

    def gone(self, connection: Any) -> None:
        self.ended += 1

    def told(self, connection: Any, rows: int) -> None: ...
    def counted_tokens(self, connection: Any, count: int) -> None: ...


async def hold(spec: LoadSpec) -> None:
    many = Many(spec)
    try:
        await many.open()
    except TimeoutError:
        raise TimeoutError(
            f"{many.started} of {spec.connections} began in time, {dict(many.how)} ended"
        ) from None
    print(f"held {spec.connections}", flush=True)
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, sys.stdin.readline):
        print(f"events {many.seen} ended {many.ended}", flush=True)


def main() -> int:
    raise_file_limit()
    spec = LoadSpec.from_json(json.loads(sys.stdin.readline()))
    try:
        uvloop.run(hold(spec))
    except (OSError, TimeoutError) as error:
        print(f"failed {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
