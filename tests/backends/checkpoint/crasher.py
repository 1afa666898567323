"""Run as a program: does a scenario in child processes that are killed at one operation after
another, each in a folder of its own. Torch is loaded once; the children are forks.

    python -m tests.backends.checkpoint.crasher FOLDER life
    python -m tests.backends.checkpoint.crasher FOLDER publishers
    python -m tests.backends.checkpoint.crasher FOLDER pulls
"""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from pathlib import Path

from backends.checkpoint import Disk, Run, prune, publish
from backends.checkpoint.mirror import push, refresh
from backends.checkpoint.objects import Store
from tests.backends.checkpoint.faults import CountingDisk, KillingDisk
from tests.backends.checkpoint.samples import make

PUBLISHERS, TIMES = 3, 8


def prepare(root: Path) -> None:
    """What stands before the scenario starts."""
    run = Run(root)
    make(run, 1)
    make(run, 2)
    publish(run, "stable", 2)


def life(root: Path, disk: Disk) -> None:
    """The scenario: a third step is committed, published, and the first retired."""
    run = Run(root, disk)
    make(run, 3)
    publish(run, "stable", 3)
    prune(run, keep=1)


def forked(work) -> int:
    """Does `work` in a child; how it ended, as `waitpid` says."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


def lives(folder: Path) -> None:
    prepare(folder / "whole")
    disk = CountingDisk()
    life(folder / "whole", disk)
    (folder / "operations").write_text(" ".join(disk.names))
    for at in range(disk.count):
        root = folder / f"killed-{at:03d}"
        prepare(root)
        status = forked(lambda root=root, at=at: life(root, KillingDisk(at)))
        if not os.WIFSIGNALED(status):
            raise SystemExit(f"operation {at} did not kill its process: {status}")


def pulls(folder: Path) -> None:
    """A copy of a run on a store, at step 1, is brought to step 2."""
    run, store = Run(folder / "run"), Store(f"file://{folder}/store")
    for step in (1, 2):
        make(run, step)
        publish(run, "stable", step)
        push(run, "stable", store)
        if step == 1:
            refresh(store, Run(folder / "before"), "stable")
    disk = CountingDisk()
    shutil.copytree(folder / "before", folder / "whole")
    refresh(store, Run(folder / "whole", disk), "stable")
    (folder / "operations").write_text(" ".join(disk.names))
    for at in range(disk.count):
        root = folder / f"killed-{at:03d}"
        shutil.copytree(folder / "before", root)
        status = forked(
            lambda root=root, at=at: refresh(store, Run(root, KillingDisk(at)), "stable")
        )
        if not os.WIFSIGNALED(status):
            raise SystemExit(f"operation {at} did not kill its process: {status}")


def publishers(folder: Path) -> None:
    prepare(folder)

    def work(step: int) -> None:
        for _ in range(TIMES):
            publish(Run(folder), "stable", step)

    children = []
    for i in range(PUBLISHERS):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                work(1 + i % 2)
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    if any(os.waitpid(pid, 0)[1] for pid in children):
        raise SystemExit("a publisher failed")


if __name__ == "__main__":
    # Newer Pythons warn of forks beside threads; the leases' threads have ended by then.
    warnings.simplefilter("ignore", DeprecationWarning)
    {"life": lives, "publishers": publishers, "pulls": pulls}[sys.argv[2]](Path(sys.argv[1]))
