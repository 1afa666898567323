"""Leases: who lives, as far as the kernel knows and, elsewhere, as far as hearts beat."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from backends.checkpoint import BadRecord, Disk, Host, NoSuchStep, ReaderLease, Run, live_leases
from backends.checkpoint.lease import MAX_MEMORIES, MAX_TTL_S, MEMORY, Lease, reap
from tests.backends.checkpoint.faults import FailingDisk, FakeHost, World
from tests.backends.checkpoint.samples import make

BOOTS = {
    "same machine": ("boot-a", "pid:1"),
    "another container": ("boot-a", "pid:2"),
    "another machine": ("boot-b", "pid:1"),
}
ELSEWHERE = ["another container", "another machine"]


@pytest.fixture
def world():
    return World()


@pytest.fixture
def run(root):
    run = Run(root)
    make(run, 1)
    return run


def at(run, world, pid, where="same machine"):
    return Run(run.root, host=FakeHost(world, pid, *BOOTS[where]))


def held(run, world, pid, where="same machine", ttl_s=60.0):
    """A lease whose process the test ends or lets beat."""
    lease = ReaderLease(at(run, world, pid, where), 1, f"reader-{pid}", ttl_s=ttl_s)
    return lease.acquire()


def test_a_lease_is_live_while_it_is_held(run):
    with ReaderLease(run, 1, "digits-0") as lease:
        (record,) = live_leases(run)
        assert (record.kind, record.holder, record.target) == (
            "reader",
            "digits-0",
            "step-00000001",
        )
        assert record.life.pid == os.getpid()
        assert lease.path.exists()
    assert live_leases(run) == []
    assert not lease.path.exists()
    lease.release()
    lease.beat()
    assert not lease.path.exists()


def test_leases_of_one_name_do_not_disturb_each_other(run):
    with ReaderLease(run, 1, "a"), ReaderLease(run, 1, "a"):
        assert len(live_leases(run)) == 2


def test_a_step_that_is_not_there_cannot_be_leased(run, root):
    with pytest.raises(NoSuchStep), ReaderLease(run, 2, "a"):
        pass
    assert live_leases(run) == []
    nowhere = Run(root / "nowhere")
    with pytest.raises(NoSuchStep), ReaderLease(nowhere, 1, "a"):
        pass
    assert not nowhere.root.exists()


@pytest.mark.parametrize("name", ["", "a/b", "..", "a~b", "x" * 65])
def test_names_are_plain(run, name):
    with pytest.raises(BadRecord, match="cannot name a lease"):
        ReaderLease(run, 1, name)


@pytest.mark.parametrize("ttl_s", [0, 0.5, -1, MAX_TTL_S + 1])
def test_times_to_live_are_bounded(run, ttl_s):
    with pytest.raises(BadRecord, match="ttl_s"):
        ReaderLease(run, 1, "a", ttl_s=ttl_s)


@pytest.mark.parametrize("jump", [-1e9, 1e9])
@pytest.mark.parametrize("where", BOOTS)
def test_a_jump_of_the_wall_clock_frees_nothing(run, world, where, jump):
    lease = held(run, world, 7, where)
    judge = at(run, world, 1)
    assert len(live_leases(judge)) == 1
    world.offset = jump
    assert len(live_leases(judge)) == 1
    lease.beat()
    world.offset = 0.0
    assert len(live_leases(judge)) == 1
    lease.release()
    assert live_leases(judge) == []


def test_here_the_process_decides_however_long_it_does_not_beat(run, world):
    lease = held(run, world, 7)
    judge = at(run, world, 1)
    world.seconds += 1e6
    assert len(live_leases(judge)) == 1
    world.dead.add(7)
    assert live_leases(judge) == []
    lease.release()


@pytest.mark.parametrize("where", ELSEWHERE)
def test_elsewhere_a_heart_that_stands_still_for_its_time_is_dead(run, world, where):
    lease = held(run, world, 7, where, ttl_s=30)
    judge = at(run, world, 1)
    world.dead.add(7)  # which nobody here can know
    assert len(live_leases(judge)) == 1
    world.seconds += 29
    assert len(live_leases(judge)) == 1
    lease.beat()
    world.seconds += 29
    assert len(live_leases(judge)) == 1
    world.seconds += 29
    assert len(live_leases(judge)) == 1
    world.seconds += 2
    assert live_leases(judge) == []
    lease.beat()
    assert len(live_leases(judge)) == 1
    lease.release()


def test_a_judge_that_never_looked_before_believes(run, world):
    """A prune from the command line, long after the last beat: it has seen nothing stand still."""
    lease = held(run, world, 7, "another machine", ttl_s=1)
    world.seconds += 1e6
    assert len(live_leases(at(run, world, 1))) == 1
    # But another process on this machine remembers what that one saw.
    world.seconds += 2
    assert live_leases(at(run, world, 2)) == []
    lease.release()


def test_what_was_seen_before_a_reboot_does_not_count(run, world):
    lease = held(run, world, 7, "another machine", ttl_s=1000)
    assert len(live_leases(at(run, world, 1))) == 1
    for memory in run.leases.glob(f"{MEMORY}*"):
        memory.rename(memory.with_name(f"{MEMORY}boot-c"))
    world.seconds = 5.0  # less than when it was seen
    judge = Run(run.root, host=FakeHost(world, 1, "boot-c"))
    assert len(live_leases(judge)) == 1
    world.seconds += 999
    assert len(live_leases(judge)) == 1
    world.seconds += 2
    assert live_leases(judge) == []
    lease.release()


@pytest.mark.parametrize("content", [b"", b"junk", b'{"seen": {"x": 1}}'])
def test_a_damaged_memory_is_a_memory_of_nothing(run, world, content):
    lease = held(run, world, 7, "another machine", ttl_s=10)
    judge = at(run, world, 1)
    live_leases(judge)
    (memory,) = run.leases.glob(f"{MEMORY}*")
    memory.write_bytes(content)
    world.seconds += 11
    assert len(live_leases(judge)) == 1
    lease.release()


def test_a_damaged_lease_protects_for_a_day(run, world):
    lease = held(run, world, 7)
    judge = at(run, world, 1)
    lease.path.write_bytes(b"\0" * 10)
    (record,) = live_leases(judge)
    assert (record.kind, record.holder, record.target) == ("reader", "reader-7", "step-00000001")
    world.seconds += MAX_TTL_S - 1
    assert len(live_leases(judge)) == 1
    lease.beat()  # writes it anew
    assert live_leases(judge)[0].life.pid == 7
    lease.path.write_bytes(b"")
    live_leases(judge)
    world.seconds += MAX_TTL_S + 1
    assert live_leases(judge) == []
    reap(judge)
    assert not lease.path.exists()
    lease.release()


def test_what_the_dead_left_is_reaped_and_memories_are_bounded(run, world):
    leases = [held(run, world, pid) for pid in (7, 8)]
    world.dead.add(7)
    (run.leases / ".tmp-abc").write_bytes(b"half")
    for i in range(MAX_MEMORIES + 5):
        (run.leases / f"{MEMORY}{i:03d}").touch()
    judge = at(run, world, 1)
    reap(judge)
    assert not leases[0].path.exists()
    assert leases[1].path.exists()
    assert (run.leases / ".tmp-abc").exists()  # it may be a live process's, just now
    world.seconds += MAX_TTL_S + 1
    reap(judge)
    assert not (run.leases / ".tmp-abc").exists()
    assert len(list(run.leases.glob(f"{MEMORY}*"))) <= MAX_MEMORIES + 1
    for lease in leases:
        lease.release()


def test_the_heart_beats_by_itself_and_survives_a_full_disk(run, monkeypatch):
    beats, enough = [], threading.Event()

    def beat(self):
        beats.append(self)
        if len(beats) == 2:
            raise OSError("no space")
        if len(beats) == 4:
            enough.set()

    monkeypatch.setattr(Lease, "beat", beat)
    with ReaderLease(run, 1, "a", ttl_s=1):
        assert enough.wait(30)


def test_a_lease_that_cannot_be_removed_is_left_to_the_processs_end(run):
    disk = FailingDisk(3)  # create, write, rename, then the unlink
    lease = ReaderLease(Run(run.root, disk), 1, "a").acquire()
    lease.release()
    assert disk.names[-1] == "unlink"
    assert lease.path.exists()
    assert len(live_leases(run)) == 1


def test_the_kernel_knows_this_process_a_dead_one_and_a_reborn_one():
    host = Host()
    life = host.life()
    assert host.alive(life) is True
    assert host.alive(replace(life, started=life.started + 1)) is False
    assert host.alive(replace(life, boot="another")) is None
    assert host.alive(replace(life, namespace="another")) is None
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    own = replace(life, pid=child.pid, started=_started(child.pid))
    assert host.alive(own) is True
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert host.alive(own) is False  # a zombie reads nothing
    child.communicate()
    assert host.alive(own) is False


def test_a_process_of_which_the_kernel_does_not_tell_is_judged_by_its_heart(monkeypatch):
    host = Host()
    life = host.life()

    def refuse(pid, signal):
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert host.alive(life) is True
    assert host.alive(replace(life, pid=2**22 + 5)) is None


def _started(pid):
    from backends.checkpoint.liveness import _started

    return _started(pid)


def test_uptime_and_boot_are_the_machines(monkeypatch):
    host = Host()
    assert host.uptime() > 0
    assert len(host.boot()) == 36
    assert isinstance(Run(".").disk, Disk)
