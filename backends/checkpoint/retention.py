"""Retention: which steps may go, and the careful removal of those.

`plan` decides and touches nothing; `prune` does what it says under the run's lock; `clean` removes
what crashes left. Invariant: LATEST, what channels serve or would roll back to, what a live lease
names and the newest whole checkpoint are never removed, whatever the numbers say.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from contextlib import suppress

from backends.checkpoint.channel import channel_names, read_channel
from backends.checkpoint.disk import TEMPORARY
from backends.checkpoint.errors import BadRecord, CheckpointError
from backends.checkpoint.lease import live_leases, reap
from backends.checkpoint.run import Run
from backends.checkpoint.staging import PREFIX
from backends.checkpoint.verify import verify

TRASH = ".trash-"


def plan(
    steps: Collection[int],
    *,
    whole: Collection[int],
    protected: Collection[int],
    keep: int,
    keep_every: int | None = None,
) -> list[int]:
    """The steps to delete, ascending.

    Kept are the `keep` newest whole steps (broken ones do not count), whole multiples of
    `keep_every`, all `protected`, and every step newer than the newest whole one.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    if keep_every is not None and keep_every < 1:
        raise ValueError(f"keep_every must be at least 1, got {keep_every}")
    good = sorted(set(whole) & set(steps))
    if not good:
        return []
    kept = set(good[-keep:]) | set(protected)
    if keep_every is not None:
        kept |= {step for step in good if step % keep_every == 0}
    return sorted(step for step in set(steps) - kept if step < good[-1])


def protected_steps(run: Run) -> set[int]:
    """LATEST, channels with the version that a rollback goes to, and steps under a live lease.

    Raises BadRecord when one of these records is damaged: what it protects is then unknown.
    """
    steps = set()
    pointer = run.pointer()
    if pointer is not None:
        steps.add(pointer[0])
    for name in channel_names(run):
        channel = read_channel(run, name)
        if channel is not None:
            steps.add(channel.step)
            steps |= {entry.step for entry in channel.behind()[:1]}
    return steps | leased_steps(run)


def leased_steps(run: Run) -> set[int]:
    targets = {lease.target for lease in live_leases(run)}
    return {step for step in run.steps() if run.folder(step).name in targets}


def prunable(run: Run, keep: int, keep_every: int | None = None) -> list[int]:
    """What `prune` would delete now. Reads every byte of the newest checkpoint that stays, so that
    older ones never go in favour of one that only looks whole."""
    steps, protected = run.steps(), protected_steps(run)
    whole = {step for step in steps if _whole(run, step, every_byte=False)}
    while True:
        doomed = plan(steps, whole=whole, protected=protected, keep=keep, keep_every=keep_every)
        staying = whole - set(doomed)
        if not doomed or _whole(run, max(staying), every_byte=True):
            return doomed
        whole.discard(max(staying))


def prune(run: Run, keep: int, keep_every: int | None = None) -> list[int]:
    """Deletes what the plan names; returns the steps that went. Cleans up after crashes too."""
    deleted = []
    if not run.ckpt.is_dir():
        return []
    with run.lock():
        for step in prunable(run, keep, keep_every):
            trash = run.ckpt / f"{TRASH}{step:08d}-{uuid.uuid4().hex[:8]}"
            run.disk.rename(run.folder(step), trash)
            if run.folder(step).name in {lease.target for lease in live_leases(run)}:
                # A reader came in between the plan and the rename: it has the right of way.
                run.disk.rename(trash, run.folder(step))
                continue
            deleted.append(step)
        run.disk.fsync_path(run.ckpt)
        _clean(run)
    return deleted


def clean(run: Run) -> None:
    """Removes staging folders without a live writer, trash, temporary files and dead leases."""
    if run.ckpt.is_dir():
        with run.lock():
            _clean(run)


def _clean(run: Run) -> None:
    # The claims are read after the folders are listed: a writer claims before it creates.
    found = [*run.ckpt.glob(f"{PREFIX}*"), *run.ckpt.glob(f"{TRASH}*")]
    claimed = {lease.target for lease in live_leases(run)}
    for folder in found:
        if folder.name not in claimed:
            with suppress(OSError):
                run.disk.remove_tree(folder)
    for file in run.ckpt.glob(f"{TEMPORARY}*"):
        with suppress(OSError):
            run.disk.unlink(file)
    reap(run)


def _whole(run: Run, step: int, *, every_byte: bool) -> bool:
    try:
        verify(run, step, every_byte=every_byte)
    except BadRecord:
        return False
    except CheckpointError:
        return False
    return True
