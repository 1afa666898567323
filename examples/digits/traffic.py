"""Continuous traffic for the demo: held-out digits through the gateway, every answer accounted for.

Owns one thread with an event loop and the record of each request. It retries nothing: what the
gateway answers is what counts. Invariant: sent = answered + failed once `stop` has returned.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import aiohttp
import numpy as np


@dataclass(slots=True)
class Answer:
    at: float  # when it was sent, in seconds of `time.monotonic`
    seconds: float
    version: str
    right: bool


@dataclass(slots=True)
class Window:
    """What happened between two moments."""

    answers: list[Answer] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def sent(self) -> int:
        return len(self.answers) + len(self.failures)

    def percentile_ms(self, q: float) -> float:
        times = [answer.seconds for answer in self.answers]
        return float(np.percentile(times, q)) * 1e3 if times else float("nan")

    def versions(self) -> Counter[str]:
        return Counter(answer.version for answer in self.answers)

    def accuracy(self, version: str) -> float:
        right = [answer.right for answer in self.answers if answer.version == version]
        return sum(right) / len(right)


class Traffic:
    """`rate` requests per second, sent on a schedule whatever the answers take (open loop)."""

    def __init__(
        self, url: str, images: np.ndarray, digits: np.ndarray, rate: float = 200.0
    ) -> None:
        self._url, self._rate = url, rate
        self._digits = digits
        self._bodies = [image.astype("<f4").tobytes() for image in images]
        self._answers: list[Answer] = []
        self._failures: list[tuple[float, str]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="traffic")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def sent(self) -> int:
        return len(self._answers) + len(self._failures)

    @property
    def failed(self) -> int:
        return len(self._failures)

    def between(self, start: float, end: float) -> Window:
        """The requests sent from `start` until `end` (monotonic seconds)."""
        return Window(
            [answer for answer in self._answers if start <= answer.at < end],
            [reason for at, reason in self._failures if start <= at < end],
        )

    async def _run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=30)
        # No limit on connections: a request that waits for a socket would hide a slow server.
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            aiohttp.ClientSession(timeout=timeout, connector=connector) as session,
            asyncio.TaskGroup() as group,
        ):
            due, turn = time.monotonic(), 0
            while not self._stop.is_set():
                group.create_task(self._ask(session, turn % len(self._bodies)))
                turn, due = turn + 1, due + 1 / self._rate
                await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _ask(self, session: aiohttp.ClientSession, index: int) -> None:
        # A binary OIP request of one image: an empty JSON header means "raw tensor bytes".
        at = time.monotonic()
        headers = {"Inference-Header-Content-Length": "0"}
        try:
            async with session.post(self._url, data=self._bodies[index], headers=headers) as reply:
                body = await reply.read()
                if reply.status != 200:
                    self._failures.append((at, f"{reply.status} {body[:120]!r}"))
                    return
                version = reply.headers["x-model-version"]
        except (aiohttp.ClientError, TimeoutError) as error:
            self._failures.append((at, repr(error)))
            return
        # The last output is `digit`, one INT64.
        right = int.from_bytes(body[-8:], "little") == self._digits[index]
        self._answers.append(Answer(at, time.monotonic() - at, version, right))
