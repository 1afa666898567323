"""The trash: what is to be removed first gets a name under which nobody looks for it.

Owns `<run>/ckpt/.trash-<old name>-<token>`. Invariant: a folder disappears from its place at once,
so that no crash and no reader ever meets half of it there.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

from backends.checkpoint.run import Run

PREFIX = ".trash-"


def move(run: Run, folder: Path) -> Path:
    """Renames a folder in <run>/ckpt. Under the run's lock."""
    target = run.ckpt / f"{PREFIX}{folder.name}-{uuid.uuid4().hex[:12]}"
    run.disk.rename(folder, target)
    return target


def restore(run: Run, claimed: Collection[str]) -> None:
    """Puts back what a live lease claims: its mover died before it could. Under the run's lock."""
    for folder in contents(run):
        name = folder.name.removeprefix(PREFIX).rpartition("-")[0]
        if name in claimed and not (run.ckpt / name).exists():
            run.disk.rename(folder, run.ckpt / name)


def contents(run: Run) -> list[Path]:
    """Under the run's lock, what is in the trash is there to stay; without it, perhaps not."""
    return sorted(run.ckpt.glob(f"{PREFIX}*"))


def remove(run: Run, folders: Iterable[Path]) -> None:
    """Removes folders that were in the trash under the lock; takes as long as it takes, without
    it. What fails is left for the next time."""
    for folder in folders:
        with suppress(OSError):
            run.disk.remove_tree(folder)
