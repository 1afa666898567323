"""Retention: what may go, what never does, and who has the right of way."""

from __future__ import annotations

import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.checkpoint import (
    BadRecord,
    CheckpointError,
    NoSuchStep,
    ReaderLease,
    Run,
    Staging,
    clean,
    plan,
    prunable,
    prune,
    publish,
    read_tensors,
    retention,
    rollback,
)
from tests.backends.checkpoint.faults import CountingDisk, FakeHost, World
from tests.backends.checkpoint.samples import finish, loads, make, staged

STEPS = st.sets(st.integers(0, 40), max_size=12)


@pytest.fixture
def run(root):
    run = Run(root)
    for step in range(1, 6):
        make(run, step)
    return run


def damage(run, step):
    path = run.folder(step) / "model/model-00001-of-00002.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def hidden(run):
    return sorted(path.name for path in run.ckpt.iterdir() if path.name.startswith("."))


@given(STEPS, STEPS, STEPS, st.integers(1, 5), st.none() | st.integers(1, 9))
def test_a_plan_keeps_what_must_be_kept(steps, whole, protected, keep, keep_every):
    doomed = plan(steps, whole=whole, protected=protected, keep=keep, keep_every=keep_every)
    left = steps - set(doomed)
    good = sorted(steps & whole)
    assert doomed == sorted(set(doomed))
    assert set(doomed) <= steps
    assert protected & steps <= left
    assert set(good[-keep:]) <= left
    if good:
        # Nothing newer than the newest whole step goes; broken steps do not count as kept.
        assert all(step < good[-1] for step in doomed)
        assert len(left & whole) >= min(keep, len(good))
    else:
        assert not doomed
    if keep_every:
        assert {step for step in good if step % keep_every == 0} <= left
    # What is left over is left for a reason, so planning again deletes nothing more.
    assert not plan(left, whole=whole, protected=protected, keep=keep, keep_every=keep_every)
    kept_for_nothing = [
        step
        for step in left - protected - set(good[-keep:])
        if not (keep_every and step in whole and step % keep_every == 0)
        and good
        and step < good[-1]
    ]
    assert not kept_for_nothing


@pytest.mark.parametrize(
    ("keep", "every", "word"), [(0, None, "keep"), (-1, None, "keep"), (1, 0, "keep_every")]
)
def test_numbers_that_would_keep_nothing_are_refused(run, keep, every, word):
    for act in (prune, prunable):
        with pytest.raises(ValueError, match=f"^{word} must be at least 1"):
            act(run, keep, every)
    assert len(run.steps()) == 5


def test_the_newest_stay_and_every_nth(run):
    assert prunable(run, keep=2) == [1, 2, 3]
    assert prunable(run, keep=1, keep_every=2) == [1, 3]
    assert run.steps() == [1, 2, 3, 4, 5]
    assert prune(run, keep=1, keep_every=2) == [1, 3]
    assert run.steps() == [2, 4, 5]
    assert prune(run, keep=1, keep_every=2) == []
    assert hidden(run) == []


def test_a_run_without_anything_has_nothing_to_prune(root):
    run = Run(root)
    assert prune(run, keep=1) == []
    clean(run)
    assert not root.exists()


def test_channels_keep_their_step_and_the_way_back(run):
    for step in (1, 2, 3):
        publish(run, "stable", step)
    publish(run, "canary", 1)
    assert prune(run, keep=1) == [4]
    assert rollback(run, "stable").step == 2
    assert prune(run, keep=1) == [3]
    assert run.steps() == [1, 2, 5]


def test_leased_steps_stay_until_released(run):
    with ReaderLease(run, 1, "a"), ReaderLease(run, 3, "b"):
        assert prune(run, keep=1) == [2, 4]
        assert loads(run, 1)
    assert prune(run, keep=1) == [1, 3]


def test_latest_stays_even_if_newer_steps_are_there(run):
    os.rename(run.ckpt / "LATEST", run.root / "newest")
    make(run, 0)  # LATEST says 0 now
    assert prune(run, keep=1) == [1, 2, 3, 4]
    assert run.steps() == [0, 5]


def test_broken_steps_do_not_count_and_go_with_the_old(run):
    os.truncate(run.folder(4) / "state/.metadata", 1)
    damage(run, 2)  # not to be seen by sizes
    (run.folder(1) / "MANIFEST.json").write_bytes(b"")
    assert prune(run, keep=2) == [1, 2, 4]
    assert run.steps() == [3, 5]


def test_the_only_whole_step_is_never_deleted(run):
    for step in (2, 3, 4, 5):
        damage(run, step)
    # By their sizes all are whole; by its bytes only the first is.
    assert prunable(run, keep=1, every_byte=False) == [1, 2, 3, 4]
    assert prune(run, keep=1) == []
    assert run.steps() == [1, 2, 3, 4, 5]
    assert run.latest().step == 1
    damage(run, 1)
    assert prune(run, keep=1) == []
    assert prune(run, keep=1, every_byte=False) == [1, 2, 3, 4]


def test_whole_ones_go_only_in_favour_of_a_whole_one(run):
    damage(run, 5)
    os.unlink(run.ckpt / "LATEST")
    assert prune(run, keep=1) == [1, 2, 3]
    assert run.steps() == [4, 5]
    assert run.latest().step == 4


@pytest.mark.parametrize("record", ["ckpt/LATEST", "channels/stable.json"])
def test_nothing_goes_while_it_is_unknown_what_is_protected(run, record):
    publish(run, "stable", 1)
    (run.root / record).write_bytes(b"?")
    with pytest.raises(BadRecord):
        prune(run, keep=1)
    assert len(run.steps()) == 5


class HookedDisk(CountingDisk):
    """Runs `hook` once, just before or just after the first rename into the trash."""

    def __init__(self, hook, *, early):
        super().__init__()
        self.hook, self.early = hook, early

    def _fire(self, name, arguments, early):
        moved = name == "rename" and arguments[1].name.startswith(".trash-")
        if moved and early == self.early and self.hook is not None:
            hook, self.hook = self.hook, None
            hook()

    def before(self, number, name, arguments):
        self._fire(name, arguments, True)

    def after(self, name, arguments, result):
        self._fire(name, arguments, False)


@pytest.mark.parametrize("early", [True, False], ids=["before-the-move", "while-it-is-away"])
def test_a_reader_that_comes_after_the_plan_waits_and_has_the_right_of_way(run, early):
    """It begins only when the step is back: no byte of it can be missing under its lease."""
    pruning, errors, started = threading.Event(), [], threading.Event()
    lease = ReaderLease(Run(run.root), 1, "late")

    def read():
        real = lease.beat
        lease.beat = lambda: (real(), started.set())
        try:
            lease.acquire()
        except NoSuchStep as error:
            errors.append(error)
        if not pruning.is_set():
            errors.append("begun beside a pruner that has the step in its hands")

    thread = threading.Thread(target=read)

    def hook():
        thread.start()
        assert started.wait(30)  # its claim is written
        thread.join(0.05)
        assert thread.is_alive()
        pruning.set()

    pruned = prune(Run(run.root, HookedDisk(hook, early=early)), keep=1)
    thread.join()
    assert pruned == [2, 3, 4]
    assert errors == []
    assert loads(run, 1)
    lease.release()
    assert prune(run, keep=1) == [1]
    assert hidden(run) == []


def test_what_is_published_after_the_plan_stays(run, monkeypatch):
    def planned(*arguments, **options):
        doomed = prunable(*arguments, **options)
        publish(run, "stable", 1)
        return doomed

    monkeypatch.setattr(retention, "prunable", planned)
    assert prune(run, keep=1) == [2, 3, 4]
    assert loads(run, 1)


def test_what_a_killed_pruner_had_taken_from_a_reader_is_put_back(run):
    with ReaderLease(run, 1, "a"):
        run.folder(1).rename(run.ckpt / ".trash-step-00000001-abc")
        run.folder(2).rename(run.ckpt / ".trash-step-00000002-abc")
        clean(run)
        assert run.steps() == [1, 3, 4, 5]
        assert loads(run, 1)
        assert hidden(run) == []


def test_readers_and_a_pruner_in_full_flight(run):
    """Whoever holds a lease reads every byte as committed, whatever is deleted beside it."""
    done, problems, reads = threading.Event(), [], []

    def read(name):
        mine = Run(run.root)
        while not done.is_set():
            for step in mine.steps():
                try:
                    with ReaderLease(mine, step, name):
                        if not loads(mine, step):
                            problems.append((step, "wrong values"))
                        reads.append(step)
                except NoSuchStep:
                    pass
                except CheckpointError as error:
                    problems.append((step, error))

    threads = [threading.Thread(target=read, args=(f"reader-{i}",)) for i in range(2)]
    for thread in threads:
        thread.start()
    for step in range(6, 26):
        make(run, step)
        prune(run, keep=1)
    done.set()
    for thread in threads:
        thread.join()
    assert problems == []
    assert reads
    assert run.latest().step == 25
    prune(run, keep=1)
    assert run.steps() == [25]
    assert hidden(run) == []


def test_staging_folders_go_when_their_writer_is_dead(run):
    world = World()
    writer = Run(run.root, host=FakeHost(world, 7))
    judge = Run(run.root, host=FakeHost(world, 1))
    staging, _ = staged(writer, 6)
    for name in (".staging-00000009-x", ".trash-step-00000009-y"):
        (run.ckpt / name).mkdir()
    (run.ckpt / ".tmp-abc").write_bytes(b"LATEST")
    clean(judge)
    assert hidden(run) == [staging.folder.name]
    world.dead.add(7)
    clean(judge)
    assert hidden(run) == []
    # A straggler of the dead attempt brings nothing back.
    with pytest.raises(FileNotFoundError):
        Staging(writer, 6, "1", 1).write_shard(1, 2, {})
    assert hidden(run) == []
    staging.discard()


def test_pruning_does_not_disturb_a_commit_under_way(run):
    staging, parts = staged(run, 6)
    assert prune(run, keep=1) == [1, 2, 3, 4]
    assert finish(staging, parts).step == 6
    assert loads(run, 6)


def test_a_step_that_cannot_be_deleted_is_out_of_sight_at_least(run):
    class Stubborn(CountingDisk):
        def before(self, number, name, arguments):
            if name == "unlink" and "step-" in str(arguments[0]):
                raise OSError("busy")

    assert prune(Run(run.root, Stubborn()), keep=1) == [1, 2, 3, 4]
    assert run.steps() == [5]
    assert len(hidden(run)) == 4
    clean(run)
    assert hidden(run) == []


def test_links_in_the_trash_are_removed_not_followed(run, tmp_path):
    (tmp_path / "precious").write_text("x")
    (run.folder(1) / "state/link").symlink_to(tmp_path)
    assert 1 in prune(run, keep=1)
    assert (tmp_path / "precious").exists()


def test_reading_what_was_deleted_meanwhile_is_a_plain_error(run):
    manifest, folder = run.manifest(1), run.folder(1)
    prune(run, keep=1)
    with pytest.raises(CheckpointError, match="no file"):
        read_tensors(folder, manifest)
