"""The protocol as a whole: the machine of `checkpoint/test_machine.py`, and a replica that follows
its channel, loads with leases and hashes, swaps, goes back, refuses and dies, in any order.

The replica's decisions, claims and reads are the product's; a test's step stands for its threads.
"""

from __future__ import annotations

from contextlib import suppress

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from backends.checkpoint import live_leases, quarantine, read_channel, read_tensors
from backends.checkpoint.reading import Pace
from backends.claim import claimed
from backends.reload import Reload
from backends.reload_terms import (
    Begin,
    Cancel,
    LoadFailed,
    Quarantine,
    Release,
    Stage,
    Swap,
    Target,
)
from tests.backends.checkpoint.samples import loads, tensors
from tests.backends.checkpoint.test_machine import Machine

PROBATION_S, ASK_S = 10.0, 3.0


class Replica:
    def __init__(self, run, refuse):
        self.run, self.refuse = run, refuse
        self.reload = Reload(probation_s=PROBATION_S, keep=2, ask_s=ASK_S)
        self.loading = self.swapping = None
        self.cancelled = False
        self.live = {}  # by hash: step, tensors, lease
        self.served = False

    def do(self, actions):
        for action in actions:
            match action:
                case Begin(target):
                    assert self.loading is None
                    self.loading, self.cancelled = target, False
                case Cancel():
                    self.cancelled = True
                case Swap(target):
                    assert target.hash in self.live
                    self.swapping = target
                case Release(target):
                    self.live.pop(target.hash)[2].release()
                case Quarantine(target, reason):
                    self.refuse(target.hash, reason)

    def look(self, now):
        record = read_channel(self.run, "stable")
        if record is not None:
            entries = [record.entry, *record.behind()]
            targets = [Target(entry.step, entry.hash, entry.generation) for entry in entries]
            self.do(self.reload.want(targets, now))

    def step(self, now):
        """What its threads have to do, done."""
        if self.swapping is not None:
            target, self.swapping = self.swapping, None
            self.served = True
            self.do(self.reload.swapped(target, now))
        elif self.loading is not None:
            target, self.loading = self.loading, None
            self.reload.staged(target, Stage.LOAD)
            try:
                made, lease = claimed(self.run, target, "replica", self.read)
            except LoadFailed as error:
                self.do(self.reload.failed(target, error.failure, error.reason, now))
            else:
                self.live[target.hash] = (target.step, made, lease)
                self.do(self.reload.loaded(target, now))

    def read(self, manifest):
        folder = self.run.folder(manifest.step)
        return read_tensors(folder, manifest, pace=Pace(cancelled=lambda: self.cancelled))


class Protocol(Machine):
    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.begin()

    def begin(self):
        self.replica = Replica(self.process(), self.refuse_hash)

    def refuse_hash(self, hash, reason):
        quarantine(self.process(), hash, {"reason": reason})
        self.refused.add(hash)

    @rule()
    def replica_looks(self):
        self.replica.look(self.now)

    @rule(times=st.integers(1, 3))
    def replica_works(self, times):
        for _ in range(times):
            self.replica.step(self.now)

    @rule(seconds=st.sampled_from([0.3, PROBATION_S, 40.0]))
    def replica_waits(self, seconds):
        self.now += seconds
        self.replica.do(self.replica.reload.tick(self.now))

    @rule()
    def gateway_steers(self):
        self.replica.do(self.replica.reload.steer(self.now))

    @precondition(lambda self: self.replica.reload.stage is Stage.READY)
    @rule()
    def gateway_allows(self):
        reload = self.replica.reload
        self.replica.do(reload.allow(reload.target.version))

    @rule()
    def new_version_does_worse(self):
        self.replica.do(self.replica.reload.regressed("it raises", self.now))

    @rule()
    def operator_rolls_back(self):
        if (bad := self.replica.reload.goal) is not None:
            with suppress(ValueError):
                self.replica.do(self.replica.reload.give_up(bad.version, "by hand", self.now))

    @rule()
    def replica_dies(self):
        for _, _, lease in self.replica.live.values():
            lease._run.disk.unlink = self.refuse_to_unlink
            lease.release()
        self.dies(self.replica.run)
        self.begin()

    def forget(self, deleted, keep):
        assert not set(deleted) & {step for step, _, _ in self.replica.live.values()}
        super().forget(deleted, keep)

    @invariant()
    def what_is_live_is_what_was_committed(self):
        for step, made, _ in self.replica.live.values():
            assert all(torch.equal(made[name], value) for name, value in tensors(step).items())

    @invariant()
    def what_serves_is_never_given_up(self):
        serving = self.replica.reload.serving
        assert not self.replica.served or serving.hash in self.replica.live

    @invariant()
    def leased_steps_are_there_to_the_last_byte(self):
        mine = [step for step, _, _ in self.replica.live.values()]
        theirs = [step for step, held in self.leases.items() for _ in held]
        for step in {*mine, *theirs} - self.damaged:
            assert loads(self.run, step)
        readers = [lease for lease in live_leases(self.run) if lease.kind == "reader"]
        assert len(readers) == len(mine) + len(theirs)

    def teardown(self):
        """Once nothing breaks any more, what the channel points at is served, if it can be."""
        try:
            self.settle()
        finally:
            for _, _, lease in self.replica.live.values():
                lease.release()
            super().teardown()

    def settle(self):
        replica = self.replica
        replica.look(self.now)
        for _ in range(30):
            replica.step(self.now)
            self.now += 60
            replica.do(replica.reload.tick(self.now))
        assert replica.reload.stage is Stage.IDLE
        if self.stack:
            step, hash = self.stack[-1]
            good = step not in self.damaged and hash not in self.refused
            if good and self.hashes.get(step) == hash and hash not in replica.reload._refused:
                assert replica.reload.serving.hash == hash


TestProtocol = Protocol.TestCase
TestProtocol.settings = settings(max_examples=20, stateful_step_count=40, deadline=None)
