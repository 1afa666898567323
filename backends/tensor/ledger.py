"""Every job between its frame and its answer.

Owns the table of jobs by owner (a connection, mostly) and id, on the event loop's thread; the
intake and the device thread only borrow them. Invariant: a job that was taken is answered exactly
once, or its owner has gone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from backends.errors import BackendError, Cancelled, Overloaded, VersionNotFound
from backends.tensor.job import Job
from backends.tensor.reply import result_frame
from backends.tensor.texts import Owner
from backends.wire import Fault, Frame, WireError
from backends.worker import Intake

if TYPE_CHECKING:
    from backends.tensor.loading import Version


class Ledger:
    def __init__(self, intake: Intake[Job], max_intake: int) -> None:
        self._intake, self._max = intake, max_intake
        self._jobs: dict[Owner, dict[int, Job]] = {}

    @property
    def empty(self) -> bool:
        return not any(self._jobs.values())

    def take(
        self,
        owner: Owner,
        frame: Frame,
        serving: Version,
        versions: Mapping[str, Version],
    ) -> None:
        """An EXECUTE to be run. Raises BadFrame, VersionNotFound or Overloaded; then it is not."""
        jobs = self._jobs.setdefault(owner, {})
        if frame.id in jobs:
            raise WireError(f"EXECUTE {frame.id} was sent twice")
        job = Job(owner, frame, serving.signature, time.monotonic())
        if job.pin is not None and job.pin != serving.name:
            pinned = versions.get(job.pin)
            if pinned is None:
                live = ", ".join(versions)
                raise VersionNotFound(f"version {job.pin} is not live; live: {live}")
            job.fit(pinned.signature)
        if not self._intake.offer(job):
            raise Overloaded(f"{self._max} rows wait already")
        jobs[frame.id] = job

    def cancel(self, owner: Owner, id: int) -> None:
        """A job that waits is answered now; one that runs, when it is done."""
        job = self._jobs.get(owner, {}).get(id)
        if job is not None and self._intake.discard(job):
            self.answer(job, Cancelled("cancelled by the gateway").fault())

    def lost(self, owner: Owner) -> None:
        """Nobody waits for its answers any more."""
        for job in self._jobs.pop(owner, {}).values():
            job.done = True
            self._intake.discard(job)

    def answer(self, job: Job, outcome: Any) -> None:
        """`outcome` is an Outcome or a Fault; the first one counts."""
        if job.done:
            return
        job.done = True
        owner: Owner = job.owner
        del self._jobs[owner][job.id]
        if isinstance(outcome, Fault):
            owner.fault(job.id, outcome)
            return
        try:
            owner.send(result_frame(job, outcome))
        except WireError as error:  # more than a frame may carry
            owner.fault(job.id, BackendError(str(error)).fault())

    def fail_all(self, fault: Fault) -> None:
        for job in [job for jobs in self._jobs.values() for job in jobs.values()]:
            self.answer(job, fault)
