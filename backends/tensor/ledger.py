"""Every job between its frame and its answer.

Owns the table of jobs by connection and id, on the event loop's thread; the intake and the device
thread only borrow them. Invariant: a job that was taken is answered exactly once, or its gateway
has gone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from backends.errors import BackendError, Cancelled, Overloaded, VersionNotFound
from backends.server import Connection
from backends.tensor.job import Job
from backends.tensor.reply import result_frame
from backends.wire import Fault, Frame, WireError
from backends.worker import Intake

if TYPE_CHECKING:
    from backends.tensor.loading import Version


class Ledger:
    def __init__(self, intake: Intake[Job], max_intake: int) -> None:
        self._intake, self._max = intake, max_intake
        self._jobs: dict[Connection, dict[int, Job]] = {}

    @property
    def empty(self) -> bool:
        return not any(self._jobs.values())

    def take(
        self,
        connection: Connection,
        frame: Frame,
        serving: Version,
        versions: Mapping[str, Version],
    ) -> None:
        """An EXECUTE to be run. Raises BadFrame, VersionNotFound or Overloaded; then it is not."""
        jobs = self._jobs.setdefault(connection, {})
        if frame.id in jobs:
            raise WireError(f"EXECUTE {frame.id} was sent twice")
        job = Job(connection, frame, serving.signature, time.monotonic())
        if job.pin is not None and job.pin != serving.name:
            pinned = versions.get(job.pin)
            if pinned is None:
                live = ", ".join(versions)
                raise VersionNotFound(f"version {job.pin} is not live; live: {live}")
            job.fit(pinned.signature)
        if not self._intake.offer(job):
            raise Overloaded(f"{self._max} rows wait already")
        jobs[frame.id] = job

    def cancel(self, connection: Connection, id: int) -> None:
        """A job that waits is answered now; one that runs, when it is done."""
        job = self._jobs.get(connection, {}).get(id)
        if job is not None and self._intake.discard(job):
            self.answer(job, Cancelled("cancelled by the gateway").fault())

    def lost(self, connection: Connection) -> None:
        """Nobody waits for its answers any more."""
        for job in self._jobs.pop(connection, {}).values():
            job.done = True
            self._intake.discard(job)

    def answer(self, job: Job, outcome: Any) -> None:
        """`outcome` is an Outcome or a Fault; the first one counts."""
        if job.done:
            return
        job.done = True
        connection: Connection = job.owner
        del self._jobs[connection][job.id]
        if isinstance(outcome, Fault):
            connection.fault(job.id, outcome)
            return
        try:
            connection.send(result_frame(job, outcome))
        except WireError as error:  # more than a frame may carry
            connection.fault(job.id, BackendError(str(error)).fault())

    def fail_all(self, fault: Fault) -> None:
        for job in [job for jobs in self._jobs.values() for job in jobs.values()]:
            self.answer(job, fault)
