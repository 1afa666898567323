"""A model of a run, and hypothesis that drives both: processes commit, publish, roll back, lease,
prune and die in the middle of it; disks flip bits. Whatever happens, the run is as the model says.

A process that dies is one whose disk refuses everything from then on, and of which the kernel says
that it is dead; `test_crash` has the real thing.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from backends.checkpoint import (
    CheckpointError,
    CommitAborted,
    Corrupt,
    NoRollback,
    Quarantined,
    ReaderLease,
    Run,
    clean,
    is_whole,
    live_leases,
    prune,
    publish,
    quarantine,
    read_channel,
    rollback,
)
from tests.backends.checkpoint.faults import CountingDisk, FailingDisk, FakeHost, World
from tests.backends.checkpoint.samples import loads, make

MEMORY = Path("/dev/shm")
# When a process dies: at this operation of its disk. A whole commit has about thirty.
MOMENTS = st.integers(0, 45)


class Machine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        self.world, self.pids = World(), 0
        self.run = self.process()
        self.next_step = 1
        self.hashes: dict[int, str] = {}  # of committed steps
        self.damaged: set[int] = set()
        self.refused: set[str] = set()
        self.generation = 0
        self.stack: list[tuple[int, str]] = []  # what the channel points at, last; the way back
        self.leases: dict[int, list[tuple[ReaderLease, int]]] = {}  # by step: lease and pid

    def teardown(self):
        for held in self.leases.values():
            for lease, _ in held:
                lease.release()
        shutil.rmtree(self.folder)

    def process(self, disk=None) -> Run:
        self.pids += 1
        host = FakeHost(self.world, self.pids)
        return Run(self.folder / "run", disk or CountingDisk(), host)

    def dies(self, run: Run) -> None:
        self.world.dead.add(run.host.pid)

    def whole(self) -> list[int]:
        return sorted(self.hashes.keys() - self.damaged)

    @initialize()
    def start(self):
        self.commit()

    @rule()
    def commit(self):
        step, self.next_step = self.next_step, self.next_step + 1
        self.hashes[step] = make(self.process(), step).hash

    @precondition(lambda self: self.damaged)
    @rule()
    def commit_a_damaged_step_again(self):
        step = max(self.damaged)
        self.hashes[step] = make(self.process(), step).hash
        self.damaged.discard(step)

    @rule(at=MOMENTS)
    def die_committing(self, at):
        process = self.process(FailingDisk(at))
        step = self.next_step
        try:
            self.hashes[step] = make(process, step).hash
            self.next_step += 1
        except (CommitAborted, OSError):
            # Not even its own dying hand may have made it half visible.
            if step in self.run.steps():
                assert is_whole(self.run, step)
                self.hashes[step] = self.run.manifest(step).hash
                self.next_step += 1
        self.dies(process)

    @rule(data=st.data())
    def publish(self, data):
        step = data.draw(st.sampled_from(sorted(self.hashes)))
        process = self.process()
        hash = self.hashes[step]
        try:
            record = publish(process, "stable", step)
        except Corrupt:
            assert step in self.damaged
        except Quarantined:
            assert hash in self.refused
        else:
            assert step not in self.damaged
            assert hash not in self.refused
            self.generation += 1
            assert (record.generation, record.hash) == (self.generation, hash)
            self.stack.append((step, hash))

    @precondition(lambda self: self.whole())
    @rule(at=st.integers(0, 12))
    def die_publishing(self, at):
        step = self.whole()[-1]
        process = self.process(FailingDisk(at))
        with suppress(CheckpointError, OSError):
            publish(process, "stable", step)
        self.dies(process)
        record = read_channel(self.run, "stable")
        if record is not None and record.generation > self.generation:
            assert record.generation == self.generation + 1
            assert record.hash == self.hashes[step]
            self.generation += 1
            self.stack.append((step, record.hash))

    @rule()
    def roll_back(self):
        behind = [
            place
            for place, (step, hash) in enumerate(self.stack[:-1])
            if self.hashes.get(step) == hash
            and step not in self.damaged
            and hash not in self.refused
            and hash != self.stack[-1][1]
        ]
        try:
            record = rollback(self.process(), "stable")
        except NoRollback:
            assert not behind
        else:
            del self.stack[behind[-1] + 1 :]
            self.generation += 1
            assert (record.step, record.hash) == self.stack[-1]
            assert record.generation == self.generation

    @rule(data=st.data())
    def refuse(self, data):
        hash = self.hashes[data.draw(st.sampled_from(sorted(self.hashes)))]
        quarantine(self.process(), hash, {"reason": "NaN"})
        self.refused.add(hash)

    @rule(data=st.data())
    def damage(self, data):
        step = data.draw(st.sampled_from(sorted(self.hashes)))
        path = self.run.folder(step) / "model/model-00001-of-00002.safetensors"
        content = bytearray(path.read_bytes())
        if step not in self.damaged:
            content[-1] ^= 1
            path.write_bytes(content)
            self.damaged.add(step)

    @rule(data=st.data())
    def lease(self, data):
        step = data.draw(st.sampled_from(sorted(self.hashes)))
        process = self.process()
        lease = ReaderLease(process, step, "reader").acquire()
        self.leases.setdefault(step, []).append((lease, process.host.pid))

    @precondition(lambda self: any(self.leases.values()))
    @rule(data=st.data(), dies=st.booleans())
    def end_a_lease(self, data, dies):
        step = data.draw(
            st.sampled_from(sorted(step for step, held in self.leases.items() if held))
        )
        lease, pid = self.leases[step].pop()
        if dies:
            self.world.dead.add(pid)
            lease._run.disk.unlink = self.refuse_to_unlink
        lease.release()

    @staticmethod
    def refuse_to_unlink(path):
        raise OSError("its process is dead")

    @rule(seconds=st.integers(0, 10**7), jump=st.integers(-(10**9), 10**9))
    def time_passes(self, seconds, jump):
        self.world.seconds += seconds
        self.world.offset += jump

    @rule(keep=st.integers(1, 3), every=st.none() | st.integers(2, 4))
    def prune(self, keep, every):
        self.forget(prune(self.process(), keep, every), keep)

    @rule(keep=st.integers(1, 2), at=MOMENTS)
    def die_pruning(self, keep, at):
        process = self.process(FailingDisk(at))
        with suppress(CheckpointError, OSError):
            prune(process, keep)
        self.dies(process)
        clean(self.process())
        self.forget(self.hashes.keys() - set(self.run.steps()), keep)

    def forget(self, deleted, keep):
        whole = self.whole()
        for step in deleted:
            assert not self.leases.get(step)
            assert step not in [where for where, _ in self.stack[-1:]]
            assert step not in whole[-1:]
            del self.hashes[step]
            self.damaged.discard(step)
        assert len(self.hashes) >= min(keep, len(whole))

    @rule()
    def clean(self):
        clean(self.process())
        hidden = [path.name for path in self.run.ckpt.iterdir() if path.name.startswith(".")]
        assert hidden == []

    @invariant()
    def steps_are_those_committed_and_not_pruned(self):
        if self.hashes:
            assert self.run.steps() == sorted(self.hashes)

    @invariant()
    def the_newest_whole_one_loads(self):
        whole, latest = self.whole(), self.run.latest()
        assert (latest.step if latest else None) == (whole[-1] if whole else None)
        if latest:
            assert latest.hash == self.hashes[latest.step]
            assert loads(self.run, latest.step)

    @invariant()
    def leased_steps_are_there_to_the_last_byte(self):
        for step, held in self.leases.items():
            if held and step not in self.damaged:
                assert loads(self.run, step)
        readers = [lease for lease in live_leases(self.run) if lease.kind == "reader"]
        assert len(readers) == sum(len(held) for held in self.leases.values())

    @invariant()
    def the_channel_points_where_it_was_pointed(self):
        record = read_channel(self.run, "stable")
        if self.stack:
            assert (record.generation, record.step, record.hash) == (
                self.generation,
                *self.stack[-1],
            )
            assert self.run.folder(record.step).is_dir()
        else:
            assert record is None


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
