"""Faults at every operation of a commit, and in every byte range of what was committed.

Owns the injection: a disk that is full from its n-th operation on, a process that is killed there,
bits that flip, files that end early. After each the last good version must load, to the last value.
Invariant: every fault that is counted was injected; one that did not happen is an error.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backends.checkpoint import (
    CheckpointError,
    CommitAborted,
    Disk,
    Run,
    Staging,
    commit,
    publish,
    read_channel,
    read_tensors,
)

GOOD, NEXT = 1, 2
OPERATIONS = ("create", "write", "fsync", "make_folder", "rename", "unlink", "remove_folder")


def tensors(step: int) -> dict[str, Tensor]:
    """Every value is the step."""
    return {f"layer{i}.weight": torch.full((64, 32), float(step)) for i in range(3)}


def commit_step(run: Run, step: int) -> None:
    """Commits and publishes. Raises CommitAborted, CheckpointError, OSError."""
    mapping = tensors(step)
    staging = Staging(run, step, attempt="bench", rank=0)
    staging.create()
    commit(
        staging,
        [staging.guarded(lambda: staging.write_shard(0, 1, mapping))],
        model={"class": "m:M", "config": {}},
        expected={name: (tuple(t.shape), t.dtype) for name, t in mapping.items()},
        position=step,
    )
    publish(run, "stable", step)


class Faulty(Disk):
    """Does `act` instead of operation `at`, and of all after it; counts them."""

    def __init__(self, at: int | None, act: Callable[[], None] = lambda: None) -> None:
        self.count, self._at, self._act = 0, at, act

    def _before(self) -> None:
        number, self.count = self.count, self.count + 1
        if self._at is not None and number >= self._at:
            self._act()


def _with_fault(name: str) -> Callable[..., Any]:
    def operation(self: Faulty, *arguments: Any) -> Any:
        self._before()
        return getattr(Disk, name)(self, *arguments)

    return operation


for _name in OPERATIONS:
    setattr(Faulty, _name, _with_fault(_name))


@dataclass(slots=True)
class Injected:
    """`kinds`: how many faults of each kind; `lost`: those after which the last good version was
    not there, or not what had been committed."""

    kinds: dict[str, int] = field(default_factory=dict[str, int])
    lost: list[str] = field(default_factory=list[str])

    @property
    def total(self) -> int:
        return sum(self.kinds.values())


def inject(folder: Path, every: int = 1) -> Injected:
    """All of them, or each `every`-th, each in a copy of a run with one good, published step."""
    template = folder / "template"
    commit_step(Run(template), GOOD)
    disk = Faulty(None)
    counted = folder / "counted"
    shutil.copytree(template, counted)
    commit_step(Run(counted, disk), NEXT)
    found = Injected()
    planned = [*_commits(disk.count), *_damages(counted)]
    for kind, number, attempt in planned[::every]:
        root = folder / "run"
        shutil.copytree(counted if kind in ("bit flip", "truncation") else template, root)
        attempt(root)
        found.kinds[kind] = found.kinds.get(kind, 0) + 1
        if not _survived(Run(root)):
            found.lost.append(f"{kind} {number}")
        shutil.rmtree(root)
    return found


def _commits(operations: int) -> Iterator[tuple[str, int, Callable[[Path], None]]]:
    for at in range(operations):
        yield "full disk", at, partial(_full, at=at)
        yield "kill -9", at, partial(_killed, at=at)


def _full(root: Path, at: int) -> None:
    def act() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    disk = Faulty(at, act)
    try:
        commit_step(Run(root, disk), NEXT)
    except (CommitAborted, CheckpointError, OSError):
        return
    # What comes after the commit, the pointer say, may fail without undoing it.
    assert disk.count > at, "the fault was not reached"


def _killed(root: Path, at: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forks beside threads: ours have ended
        pid = os.fork()
    if pid == 0:
        try:
            commit_step(Run(root, Faulty(at, lambda: os.kill(os.getpid(), signal.SIGKILL))), NEXT)
        finally:
            os._exit(1)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status), f"operation {at} did not kill its process: {status}"


def _damages(whole: Path) -> Iterator[tuple[str, int, Callable[[Path], None]]]:
    """In each file of the newer step: eight bits, and its end."""
    step = Run(whole).folder(NEXT)
    files = sorted(path for path in step.rglob("*") if path.is_file() and path.stat().st_size)
    for number, path in enumerate(files):
        place, size = path.relative_to(whole), path.stat().st_size
        for part in range(8):
            at = part * (size - 1) // 7
            yield "bit flip", number, partial(_flip, place=place, at=at, bit=part)
        for left in (0, size // 2, size - 1):
            yield "truncation", number, partial(_cut, place=place, left=left)


def _cut(root: Path, place: Path, left: int) -> None:
    os.truncate(root / place, left)


def _flip(root: Path, place: Path, at: int, bit: int) -> None:
    path = root / place
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def _survived(run: Run) -> bool:
    """Whether the newest whole version, and what serving falls back to, are as committed."""
    latest = run.latest()
    if latest is None or latest.step not in (GOOD, NEXT):
        return False
    found, wanted = read_tensors(run.folder(latest.step), latest), tensors(latest.step)
    good = found.keys() == wanted.keys() and all(
        torch.equal(found[name], wanted[name]) for name in wanted
    )
    channel = read_channel(run, "stable")
    return good and channel is not None and channel.step in (GOOD, NEXT)


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
