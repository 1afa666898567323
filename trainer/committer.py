"""Commits: from a moment of the training to a step on disk, on all ranks or on none.

Owns the staging copy, the thread that writes while training goes on (mode "async"), and the order
of writing: state, model files, probe, manifest, channel, retention; one commit at a time.
Invariant: every rank sees the same outcome; a rank that fails to write still takes part in all
collectives, so the others learn of it and none of them waits for ever.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch.distributed as dist

from backends.checkpoint import (
    CheckpointError,
    CommitAborted,
    Failed,
    Manifest,
    Part,
    Probe,
    Run,
    Staging,
    commit,
    prune,
)
from trainer.config import CheckpointConfig
from trainer.elastic import World
from trainer.errors import StateFailed
from trainer.probe import Prober, TextProber
from trainer.publish import Published, Publisher
from trainer.state import Lineage, Snapshot, adopt, save, write_lineage
from trainer.weights import WeightFiles


@dataclass(frozen=True, slots=True)
class Moment:
    """What is committed: a step, the samples consumed until then, and what it was found to be."""

    step: int
    position: int
    evaluation: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a commit ended. `version` and `hash` are None where it was aborted, `reason` says why."""

    step: int
    version: str | None = None
    hash: str | None = None
    reason: str = ""
    pruned: tuple[int, ...] = ()
    published: Published | None = None  # what became of it, where it was to be published
    unpruned: str = ""  # why retention could not do its work
    stalled_s: float = 0.0  # training stood still for so long
    seconds: float = 0.0  # from the copy to the rename

    @property
    def good(self) -> bool:
        return self.version is not None


@dataclass(frozen=True, slots=True)
class Record:
    """What the manifest says of the model, the same for all of a run's commits."""

    model: Mapping[str, Any]
    expected: Mapping[str, tuple[tuple[int, ...], Any]]
    ties: Mapping[str, str]
    lineage: Lineage
    # Beside the weights: a tokenizer's.
    files: Mapping[str, bytes] = field(default_factory=dict)


class Committer:
    """Made by all ranks together. `attempt` must never have been used in this run."""

    def __init__(
        self,
        run: Run,
        world: World,
        config: CheckpointConfig,
        record: Record,
        snapshot: Snapshot,
        files: WeightFiles,
        prober: Prober | TextProber | None,
        *,
        attempt: str,
        parent: str | None,
        publisher: Publisher | None = None,
    ) -> None:
        self._run, self._world, self._config, self._record = run, world, config, record
        self._snapshot, self._files, self._prober = snapshot, files, prober
        self._attempt, self._parent, self._publisher = attempt, parent, publisher
        self._thread: threading.Thread | None = None
        # Filled by the writing thread, emptied by the training's.
        self._outcomes: deque[Outcome] = deque()
        self._waited = 0.0

    def begin(self, moment: Moment) -> None:
        """Copies the live tensors and commits them: in the background, or at once in mode "sync".

        Waits for the commit before it, if that is still being written. Call it on every rank.
        """
        self.join()
        started = time.monotonic()
        self._snapshot.take()
        stalled = self._waited + time.monotonic() - started
        self._waited = 0.0
        if self._config.mode == "sync":
            self._write(moment, started, None)
            return
        self._thread = threading.Thread(
            target=self._write, args=(moment, started, stalled), name="commit", daemon=True
        )
        self._thread.start()

    def join(self) -> None:
        """Waits until nothing is being written; `outcomes` are then the same on every rank."""
        if self._thread is not None:
            started = time.monotonic()
            self._thread.join()
            self._thread = None
            self._waited += time.monotonic() - started

    def outcomes(self) -> Iterator[Outcome]:
        """Those not asked for before."""
        while self._outcomes:
            yield self._outcomes.popleft()

    def _write(self, moment: Moment, started: float, stalled: float | None) -> None:
        try:
            outcome = self._commit(moment)
        except BaseException as error:
            # Between the ranks, not on the disk: a peer is gone, and training will notice too.
            outcome = Outcome(moment.step, reason=f"{type(error).__name__}: {error}")
        seconds = time.monotonic() - started
        stalled = seconds if stalled is None else stalled
        self._outcomes.append(replace(outcome, stalled_s=stalled, seconds=seconds))

    def _commit(self, moment: Moment) -> Outcome:
        staging = Staging(self._run, moment.step, self._attempt, self._world.rank)
        try:
            refused = self._tell(self._create(staging))
            if refused is not None:
                return Outcome(moment.step, reason=refused.reason)
            parts = self._stage(staging)
            everyones = self._collect(parts)
            outcome = self._conclude(staging, moment, everyones) if self._world.leads else None
            told: Outcome = self._tell(outcome)
            self._parent = told.hash or self._parent
            return told
        except BaseException:
            if self._world.leads:
                staging.discard()
            raise

    def _create(self, staging: Staging) -> Failed | None:
        if self._world.leads:
            try:
                staging.create()
            except (CheckpointError, OSError) as error:
                return Failed.of(0, error)
        return None

    def _stage(self, staging: Staging) -> list[Part | Failed]:
        """This rank's files, or the first reason why there are none."""
        parts: list[Part | Failed] = []
        group = self._world.background
        try:
            save(self._snapshot, staging, group)
            parts.append(adopt(staging))
            if self._world.leads:
                parts.append(write_lineage(self._record.lineage, staging))
                for name, content in self._record.files.items():
                    parts.append(staging.write_file(f"model/{name}", content))
        except StateFailed as error:
            parts.append(Failed(error.rank, error.reason))
        except Exception as error:
            parts.append(Failed.of(self._world.rank, error))
        failed = any(isinstance(part, Failed) for part in parts)
        return parts + self._files.write(staging, failed=failed)

    def _conclude(
        self, staging: Staging, moment: Moment, parts: list[Part | Failed | BaseException]
    ) -> Outcome:
        """Rank 0: the probe, the manifest, the rename, and what may go after it."""
        probe: Probe | None = None
        if self._prober is not None and not any(isinstance(part, Failed) for part in parts):
            try:
                probe = self._prober(staging.folder / "model")
            except Exception as error:
                parts.append(Failed(0, f"the probe failed: {error}"))
        try:
            manifest: Manifest = commit(
                staging,
                parts,
                model=self._record.model,
                expected=self._record.expected,
                ties=self._record.ties,
                position=moment.position,
                evaluation=moment.evaluation,
                probe=probe,
                parent=self._parent,
            )
        except CommitAborted as error:
            return Outcome(moment.step, reason=str(error))
        published = self._publish(moment.step)
        outcome = Outcome(moment.step, manifest.version, manifest.hash, published=published)
        try:
            pruned = prune(self._run, self._config.keep, self._config.keep_every)
        except (CheckpointError, OSError) as error:
            return replace(outcome, unpruned=f"{type(error).__name__}: {error}")
        return replace(outcome, pruned=tuple(pruned))

    def _publish(self, step: int) -> Published | None:
        """Before retention looks: what a channel points at stays."""
        if self._publisher is None or not self._publisher.due(step):
            return None
        try:
            return self._publisher.publish(step)
        except (CheckpointError, OSError) as error:
            why = {"reason": str(error), "step": step}
            return Published(f"NOT published: {error}", (("not_published", why),))

    def _collect(self, parts: list[Part | Failed]) -> list[Part | Failed | BaseException]:
        """Everybody's parts, on rank 0."""
        group = self._world.background
        if group is None:
            return list(parts)
        everyones: list[Any] | None = [None] * self._world.ranks if self._world.leads else None
        dist.gather_object(parts, everyones, dst=0, group=group)
        return [part for one in everyones or [] for part in one]

    def _tell(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self._world.background is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._world.background)
        return box[0]
