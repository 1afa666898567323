"""The device thread and its intake: what waits is executed together, whoever sent it.

Owns the one thread that touches the device, and the bounded queue before it. It knows neither
sockets nor torch: jobs come in, `execute` runs them. Invariants: nothing runs beside a batch on
this thread, a job is taken once, and an error in a batch never ends the thread.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """`total` rows; jobs with equal keys may be joined up to `limit` rows."""

    @property
    def total(self) -> int: ...
    @property
    def limit(self) -> int: ...
    @property
    def key(self) -> Hashable: ...


J = TypeVar("J", bound=Waiting)
Task = Callable[[], None]


class Intake(Generic[J]):
    """`offer`, `discard` and `call` are for the socket thread, `take` for the device thread."""

    def __init__(self, max_rows: int) -> None:
        self._max = max_rows
        self.rows = 0
        self._jobs: deque[J] = deque()
        self._tasks: deque[Task] = deque()
        self._lock = threading.Lock()
        # Held while the device thread may sleep; cheaper than a condition, which makes a lock
        # for every wait.
        self._wake = threading.Lock()
        self._wake.acquire()
        self._asleep = False
        self._closed = False

    def offer(self, job: J) -> bool:
        """False when it is full; an empty one takes anything."""
        with self._lock:
            if self.rows and self.rows + _room(job) > self._max:
                return False
            self.rows += _room(job)
            self._jobs.append(job)
            self._rouse()
        return True

    def discard(self, job: J) -> bool:
        """Whether it was still waiting; then it never runs."""
        with self._lock:
            try:
                self._jobs.remove(job)
            except ValueError:
                return False
            self.rows -= _room(job)
        return True

    def drop(self, hopeless: Callable[[J], bool]) -> list[J]:
        """Take out those of which that is true."""
        with self._lock:
            gone = [job for job in self._jobs if hopeless(job)]
            for job in gone:
                self._jobs.remove(job)
                self.rows -= _room(job)
        return gone

    def call(self, task: Task) -> None:
        """Run `task` on the device thread, before the next batch."""
        with self._lock:
            self._tasks.append(task)
            self._rouse()

    def close(self) -> None:
        """`take` gives what is left, then None."""
        with self._lock:
            self._closed = True
            self._rouse()

    def take(self) -> list[J] | Task | None:
        """Jobs that run together, or a task; waits for one. None when closed and empty."""
        while True:
            with self._lock:
                if self._tasks:
                    return self._tasks.popleft()
                if self._jobs:
                    return self._join()
                if self._closed:
                    return None
                self._asleep = True
            self._wake.acquire()

    def _rouse(self) -> None:
        if self._asleep:
            self._asleep = False
            self._wake.release()

    def _join(self) -> list[J]:
        """The oldest job and all that may join it, oldest first. Whatever waits longest goes first,
        so none starves; one that does not fit any more is not overtaken by its like."""
        jobs = self._jobs
        first = jobs.popleft()
        joined, rows, limit, key = [first], first.total, first.limit, first.key
        passed: list[J] = []
        while jobs and rows < limit:
            job = jobs.popleft()
            if job.key != key:
                passed.append(job)
                continue
            if rows + job.total > limit:
                passed.append(job)
                break
            joined.append(job)
            rows += job.total
        jobs.extendleft(reversed(passed))
        self.rows -= sum(map(_room, joined))
        return joined


def _room(job: Waiting) -> int:
    # A job without rows takes memory too.
    return job.total or 1


class DeviceThread(Generic[J]):
    """Runs `execute(jobs)` for whatever the intake gives; `crashed` hears of what it raised."""

    def __init__(
        self,
        intake: Intake[J],
        execute: Callable[[Sequence[J]], None],
        crashed: Callable[[Sequence[J], BaseException], None],
    ) -> None:
        self._intake, self._execute, self._crashed = intake, execute, crashed
        self._began: float | None = None
        # A daemon: a hung device must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout: float) -> bool:
        """Whether it ended; close the intake first."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def busy_s(self) -> float:
        """Seconds since the batch that it executes began; 0 between batches."""
        began = self._began
        return 0.0 if began is None else time.monotonic() - began

    @property
    def busy(self) -> bool:
        return self._began is not None

    def _run(self) -> None:
        while (work := self._intake.take()) is not None:
            self._began = time.monotonic()
            try:
                if isinstance(work, list):
                    self._execute(work)
                else:
                    work()
            except BaseException as error:
                self._crashed(work if isinstance(work, list) else (), error)
            self._began = None
            # While it waits for more, this thread keeps nothing alive.
            del work
