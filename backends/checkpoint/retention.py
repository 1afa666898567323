"""Retention: which steps may go, and the careful removal of those.

`plan` decides and touches nothing; `prune` does what it says; `clean` removes what crashes left.
Invariant: LATEST, what channels serve or would roll back to, what a live lease names and the newest
whole checkpoint are never removed, whatever the numbers say.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from backends.checkpoint import staging, trash
from backends.checkpoint.channel import channel_names, read_channel
from backends.checkpoint.disk import TEMPORARY
from backends.checkpoint.errors import Unreadable
from backends.checkpoint.lease import claimed, reap
from backends.checkpoint.read import is_whole
from backends.checkpoint.run import Run


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

    Raises BadRecord or Unreadable when one of these records is: what it protects is then unknown.
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
    return steps | _leased(run)


def prunable(
    run: Run, keep: int, keep_every: int | None = None, *, every_byte: bool = True
) -> list[int]:
    """What `prune` would delete now. Reads every byte of the newest checkpoint that stays, so that
    older ones never go in favour of one that only looks whole; `every_byte=False` trusts sizes."""
    steps, protected = run.steps(), protected_steps(run)
    whole = set()
    for step in steps:
        try:
            if is_whole(run, step, every_byte=False):
                whole.add(step)
        except Unreadable:
            # It may be well once the disk is.
            protected.add(step)
    while True:
        doomed = plan(steps, whole=whole, protected=protected, keep=keep, keep_every=keep_every)
        if not doomed:
            return doomed
        newest = max(whole - set(doomed))
        try:
            if is_whole(run, newest, every_byte=every_byte):
                return doomed
        except Unreadable:
            protected.add(newest)
        whole.discard(newest)


def prune(
    run: Run, keep: int, keep_every: int | None = None, *, every_byte: bool = True
) -> list[int]:
    """Deletes what the plan names; returns the steps that went. Cleans up after crashes too."""
    doomed = prunable(run, keep, keep_every, every_byte=every_byte)
    if not run.ckpt.is_dir():
        return []
    deleted = []
    with run.lock():
        # The bytes were read without the lock; what others have claimed since is seen with it.
        for step in sorted(set(doomed) & set(run.steps()) - protected_steps(run)):
            moved = trash.move(run, run.folder(step))
            if run.folder(step).name in claimed(run):
                # A reader came between the look and the move: it has the right of way.
                run.disk.rename(moved, run.folder(step))
            else:
                deleted.append(step)
        left = _sweep(run)
    trash.remove(run, left)
    return deleted


def clean(run: Run) -> None:
    """Removes staging folders without a live writer, trash, temporary files and dead leases."""
    if run.ckpt.is_dir():
        with run.lock():
            left = _sweep(run)
        trash.remove(run, left)


def _sweep(run: Run) -> list[Path]:
    """The folders to remove, all in the trash. Under the lock, under which writers claim and
    temporary files live."""
    live = claimed(run)
    trash.restore(run, live)
    for folder in run.ckpt.glob(f"{staging.PREFIX}*"):
        if folder.name not in live:
            trash.move(run, folder)
    for place in (run.ckpt, run.channels, run.quarantine):
        for file in place.glob(f"{TEMPORARY}*"):
            with suppress(OSError):
                run.disk.unlink(file)
    reap(run)
    run.disk.fsync_path(run.ckpt)
    return trash.contents(run)


def _leased(run: Run) -> set[int]:
    targets = claimed(run)
    return {step for step in run.steps() if run.folder(step).name in targets}
