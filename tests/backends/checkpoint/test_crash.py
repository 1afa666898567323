"""kill -9, full and failing disks and power loss at every single operation of a checkpoint's life:
afterwards a whole version always loads, the channel points at one, and the work can go on."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from backends.checkpoint import (
    CommitAborted,
    Failed,
    Run,
    Staging,
    clean,
    is_whole,
    prune,
    publish,
    read_channel,
)
from tests.backends.checkpoint import crasher
from tests.backends.checkpoint.faults import (
    CountingDisk,
    FailingDisk,
    FullDisk,
    ShortDisk,
    VolatileDisk,
)
from tests.backends.checkpoint.samples import finish, loads, make, shards, staged

PROJECT = Path(__file__).parents[3]


def run_crasher(folder: Path, scenario: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.backends.checkpoint.crasher", str(folder), scenario]
    subprocess.run(command, check=True, cwd=PROJECT, env=environment)


def leftovers(run: Run) -> list[str]:
    names = [path.name for path in run.ckpt.iterdir()]
    return sorted(name for name in names if name.startswith("."))


def check_survived(run: Run, where: str, *, goes_on: bool = True) -> None:
    """What must hold after anything, anywhere in `crasher.life`."""
    latest = run.latest()
    assert latest is not None, where
    assert latest.step in (2, 3), where
    for step in run.steps():
        assert is_whole(run, step), where
        assert loads(run, step), where
    channel = read_channel(run, "stable")
    assert (channel.generation, channel.step) in ((1, 2), (2, 3)), where
    assert run.manifest(channel.step, hash=channel.hash), where
    if goes_on:
        if latest.step == 2:
            # The same step under the same attempt's number: the dead writer is not in the way.
            make(run, 3)
        assert publish(run, "stable", 3).generation == channel.generation + 1, where
        clean(run)
        assert leftovers(run) == [], where
        # LATEST may lag behind a commit that was cut short just before it; nothing relies on it.
        assert run.pointer()[0] in (2, 3), where


def test_a_process_killed_at_any_operation_leaves_everything_usable(place):
    folder = place / "kills"
    folder.mkdir()
    run_crasher(folder, "life")
    operations = (folder / "operations").read_text().split()
    assert len(operations) > 40
    for at, name in enumerate(operations):
        run = Run(folder / f"killed-{at:03d}")
        check_survived(run, f"killed at operation {at} ({name})")
        assert [path.name for path in run.leases.iterdir() if path.suffix == ".json"] == []


def test_racing_publishers_in_processes_of_their_own_each_get_a_generation(place):
    folder = place / "publishers"
    run_crasher(folder, "publishers")
    record = read_channel(Run(folder), "stable")
    count = 1 + crasher.PUBLISHERS * crasher.TIMES
    assert record.generation == count
    assert [entry.generation for entry in record.previous] == list(range(1, count))


@pytest.fixture(scope="module")
def prepared(place):
    root = place / "prepared"
    crasher.prepare(root)
    disk = CountingDisk()
    copy = place / "counted"
    shutil.copytree(root, copy)
    crasher.life(copy, disk)
    return root, disk.names


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("once", [True, False], ids=["once", "for good"])
def test_a_disk_that_fails_at_any_operation_leaves_everything_usable(prepared, root, code, once):
    prepared_root, names = prepared
    for at, name in enumerate(names):
        where = f"{errno.errorcode[code]} at operation {at} ({name})"
        shutil.copytree(prepared_root, root)
        with suppress(CommitAborted, OSError):
            crasher.life(root, FailingDisk(at, code, once=once))
        check_survived(Run(root), where, goes_on=once)
        shutil.rmtree(root)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_an_aborted_commit_leaves_no_trace(root, code):
    run = Run(root)
    make(run, 1)
    counted = CountingDisk()
    make(Run(root, counted), 2)
    shutil.rmtree(run.folder(2))
    aborted = 0
    for at in range(counted.count):
        before = sorted(path.name for path in run.ckpt.iterdir())
        try:
            make(Run(root, FailingDisk(at, code, once=True)), 2)
        except CommitAborted as error:
            aborted += 1
            assert os.strerror(code) in error.reason
            assert run.steps() == [1]
            assert sorted(path.name for path in run.ckpt.iterdir()) == before
        except OSError:
            # In `create` or in a rank's own writing: nothing was committed, `clean` has the rest.
            assert run.steps() == [1]
        for path in run.leases.glob("*.json"):
            path.unlink()  # of writers that this very process, still alive, was made to abandon
        clean(run)
        if 2 in run.steps():
            shutil.rmtree(run.folder(2))
    assert aborted > 5


@pytest.mark.parametrize("eager", [False, True], ids=["lazy names", "eager names"])
def test_a_power_loss_at_any_operation_leaves_everything_loadable(prepared, root, eager):
    prepared_root, _ = prepared
    shutil.copytree(prepared_root, root)
    disk = VolatileDisk(root)
    run = Run(root, disk)
    marks = []
    make(run, 3)
    marks.append(len(disk.states))
    publish(run, "stable", 3)
    marks.append(len(disk.states))
    prune(run, keep=1)
    for at, state in enumerate(disk.states):
        where = f"power lost after operation {at} ({disk.names[at]})"
        after = root.parent / "after"
        disk.restore(state, after, eager=eager)
        survivor = Run(after)
        check_survived(survivor, where, goes_on=False)
        # What was promised as done is done.
        if at + 1 >= marks[0]:
            assert survivor.latest().step == 3, where
        if at + 1 >= marks[1]:
            assert read_channel(survivor, "stable").step == 3, where
        shutil.rmtree(after)


def test_the_step_is_durable_before_latest_names_it(root):
    order = []

    class Ordered(CountingDisk):
        def before(self, number, name, arguments):
            if name == "rename":
                order.append(arguments[1].name)
            elif name == "fsync":
                order.append(f"synced {Path(os.readlink(f'/proc/self/fd/{arguments[0]}')).name}")

    make(Run(root, Ordered()), 1)
    visible = order.index("step-00000001")
    assert order[visible : visible + 4] == ["step-00000001", "synced ckpt", "LATEST", "synced ckpt"]
    assert "synced MANIFEST.json" in order[:visible]


def test_short_writes_are_completed(root):
    run = Run(root, ShortDisk())
    make(run, 1)
    assert is_whole(run, 1)
    assert loads(run, 1)


@pytest.mark.parametrize(
    ("code", "word"), [(errno.ENOSPC, "space"), (errno.EIO, "put/output"), (0, "no bytes")]
)
@pytest.mark.parametrize("rank", [0, 1])
def test_one_ranks_failing_disk_aborts_for_all_and_is_named(root, code, word, rank):
    run = Run(root)
    make(run, 1)
    good = Staging(run, 2, "1", 1 - rank)
    bad = Staging(Run(root, FullDisk(100, code)), 2, "1", rank)
    creator = good if rank else Staging(run, 2, "1", 0)
    creator.create()
    parts = {
        r.rank: r.guarded(lambda r=r: r.write_shard(r.rank, 2, shards(2)[r.rank]))
        for r in (good, bad)
    }
    assert isinstance(parts[rank], Failed)
    with pytest.raises(CommitAborted, match=word) as caught:
        finish(creator, [parts[0], parts[1]])
    assert caught.value.rank == rank
    assert run.steps() == [1]
    assert run.latest().step == 1
    assert leftovers(run) == []


def test_an_exception_among_the_parts_aborts_too(root):
    run = Run(root)
    staging, parts = staged(run, 1)
    with pytest.raises(CommitAborted, match="rank 1: ValueError: no gradient"):
        finish(staging, [parts[0], ValueError("no gradient")])
    assert run.steps() == []
