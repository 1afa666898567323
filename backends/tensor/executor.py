"""What the device thread does with jobs: choose the version, drop the expired, run, hand back.

Owns the live versions as the device sees them. While a version is on probation, a batch on which it
fails is run on the old one too: where that one does better, its answer is sent and the new version
is reported. Invariant: every job that comes in leaves by `post` with one outcome or one fault, and
all rows of an answer come from one version.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import nn

from backends.errors import BadFrame, DeadlineExceeded, NotReady, VersionNotFound
from backends.tensor.job import Job, Piece
from backends.tensor.loading import Version
from backends.tensor.memory import exchange
from backends.tensor.pace import Pace
from backends.tensor.reply import Outcome
from backends.tensor.runner import Ran, Runner
from backends.wire import Fault
from backends.worker import Intake

Answer = tuple[Job, Outcome | Fault]


class Batch(NamedTuple):
    """What a batch tells of the version that ran it first; `regressed`: the old one did better.
    `failed` requests are counted where the old version could not be asked."""

    version: str
    rows: int
    seconds: float
    requests: int
    failed: int
    regressed: str


class Executor:
    """`post(answers, batch)` is called on the device thread, once for each call."""

    def __init__(self, runner: Runner, post: Callable[[list[Answer], Batch | None], None]) -> None:
        self._runner, self._post = runner, post
        self._versions: dict[str, Version] = {}
        self._serving: Version | None = None
        self._fallback: Version | None = None
        self._pace = Pace()

    # Changes of versions; they run on the device thread too, between two batches.

    def serve(self, version: Version, fallback: Version | None) -> None:
        self._pace.reset()
        if version.shadow:
            self._exchange(version)
        self._versions[version.name] = version
        # One in the host's memory can be gone back to, but runs nothing.
        self._serving = version
        self._fallback = fallback if fallback is not None and not fallback.shadow else None

    def _exchange(self, version: Version) -> None:
        """Its weights and those on the device change places."""
        old = self._serving
        assert old is not None and isinstance(old.model, nn.Module)
        assert isinstance(version.model, nn.Module)
        exchange(old.model, version.model)
        old.model, version.model = version.model, old.model
        old.shadow, version.shadow = True, False
        self._versions.pop(old.name, None)

    def commit(self) -> None:
        self._fallback = None

    def release(self, name: str) -> None:
        # One that was superseded before it served was never held here.
        self._versions.pop(name, None)

    def __call__(self, jobs: Sequence[Job]) -> None:
        """Jobs whose keys are equal."""
        started = time.monotonic()
        version = self._serving if jobs[0].pin is None else self._versions.get(jobs[0].pin)
        if version is None:
            self._post([(job, _gone(job).fault()) for job in jobs], None)
            return
        if jobs[0].signature is not version.signature and len(jobs) > 1:
            # They were joined by another version's signature; this one may join less.
            for job in jobs:
                self([job])
            return
        least = self._pace.least(started)
        answers: list[Answer] = []
        running: list[tuple[Job, list[int]]] = []
        pieces: list[Piece] = []
        for job in jobs:
            if job.done:
                continue
            late = job.expired(started + least)
            try:
                if job.signature is not version.signature:
                    _refit(job, version)
                pieces += job.pieces(late)
                running.append((job, late))
            except (BadFrame, NotReady) as error:
                answers.append((job, error.fault()))
        if not running:
            self._post(answers, None)
            return
        version, ran, batch = self._run(version, pieces, pinned=jobs[0].pin is not None)
        compute_us = int((time.monotonic() - started) * 1e6)
        for job, late in running:
            faults = ran.faults.get(job, {})
            if late:
                expired = _LATE.fault()
                faults = faults | dict.fromkeys(late, expired)
            queue_us = int((started - job.arrived) * 1e6)
            outcome = Outcome(
                ran.shares.get(job, ()),
                faults,
                version.signature,
                version.name,
                queue_us,
                compute_us,
                ran.rows,
            )
            answers.append((job, outcome))
        self._post(answers, batch)

    def give_up(self, intake: Intake[Job]) -> None:
        """Answer at once what waits and can no longer be met: its gateway then sends what can."""
        now = time.monotonic()
        by = now + self._pace.least(now)
        hopeless = intake.drop(lambda job: len(job.expired(by)) == len(job.rows))
        if hopeless:
            self._post([(job, _LATE.fault()) for job in hopeless], None)

    def _run(
        self, version: Version, pieces: Sequence[Piece], *, pinned: bool
    ) -> tuple[Version, Ran, Batch | None]:
        began = time.monotonic()
        ran = self._runner.run(version.model, version.signature, pieces)
        seconds = time.monotonic() - began
        if not ran.rows:
            return version, ran, None
        self._pace.observe(ran.rows, seconds, began + seconds)
        requests = sum([piece.last - piece.first for piece in pieces])
        failed = sum([len(faults) for faults in ran.faults.values()])
        batch = Batch(version.name, ran.rows, seconds, requests, failed, "")
        old = self._fallback
        if not failed or pinned or old is None or old.signature is not version.signature:
            return version, ran, batch
        again = self._runner.run(old.model, old.signature, pieces)
        worse = _places(ran) - _places(again)
        if not worse:
            return version, ran, batch._replace(failed=0)
        job, request = worse.pop()
        why = f"it fails where {old.name} does not: {ran.faults[job][request].message}"
        return old, again, batch._replace(failed=0, regressed=why)


_LATE = DeadlineExceeded("its deadline could not be met any more, and it was not started")


def _places(ran: Ran) -> set[tuple[Job, int]]:
    return {(job, request) for job, faults in ran.faults.items() for request in faults}


def _gone(job: Job) -> VersionNotFound:
    return VersionNotFound(f"version {job.pin} is not live here any more", param="version")


def _refit(job: Job, version: Version) -> None:
    """The frame was made for another version's signature."""
    try:
        job.fit(version.signature)
    except BadFrame as error:
        raise NotReady(
            f"the model changed to version {version.name} meanwhile: {error.message}"
        ) from error
