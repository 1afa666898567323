"""Reading: into which memory, how fast, until when, and what happens when the disk disagrees."""

from __future__ import annotations

import errno
import os

import pytest
import torch

from backends.checkpoint import (
    BadRecord,
    Cancelled,
    Corrupt,
    Run,
    Unreadable,
    is_whole,
    prunable,
    read_tensors,
    verify,
)
from backends.checkpoint.reading import CHUNK, NAP_S, Pace
from tests.backends.checkpoint.samples import loads, make, tensors
from tests.backends.checkpoint.test_format import written


@pytest.fixture
def run(root):
    run = Run(root)
    make(run, 1)
    return run


@pytest.fixture
def large(root):
    """Three tensors of some chunks each, the last chunk not full."""
    generator = torch.Generator().manual_seed(0)
    state = {n: torch.randn(CHUNK // 2 + 1, generator=generator) for n in "abc"}
    run, manifest = written(root, state)
    return run, manifest, state


@pytest.mark.parametrize("threads", [1, 3])
def test_tensors_longer_than_a_chunk_come_back(large, threads):
    run, manifest, state = large
    found = read_tensors(run.folder(1), manifest, threads=threads)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert verify(run, 1).hash == manifest.hash


def test_tensors_are_owned_not_mapped(large):
    run, manifest, state = large
    found = read_tensors(run.folder(1), manifest)
    (path,) = (run.folder(1) / "model").glob("*.safetensors")
    with path.open("r+b") as file:
        file.write(b"\xff" * manifest.files[f"model/{path.name}"].bytes)
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_some_tensors_by_name(run):
    manifest = run.manifest(1)
    found = read_tensors(run.folder(1), manifest, names=["b.weight", "a.steps", "b.weight"])
    assert list(found) == ["b.weight", "a.steps"]
    assert read_tensors(run.folder(1), manifest, names=[]) == {}
    with pytest.raises(BadRecord, match="no tensor 'c'"):
        read_tensors(run.folder(1), manifest, names=["c"])


def test_tensors_are_read_into_the_buffers_given(run):
    manifest = run.manifest(1)
    buffer = torch.zeros(3, 2, requires_grad=True)
    found = read_tensors(run.folder(1), manifest, into={"a.weight": buffer})
    assert found["a.weight"] is buffer
    assert buffer.eq(1).all()
    assert found.keys() == tensors(1).keys()


@pytest.mark.parametrize(
    "buffer",
    [
        torch.zeros(2, 3),
        torch.zeros(3, 2).int(),
        torch.zeros(2, 3).t(),
        torch.zeros(3, 2, device="meta"),
    ],
)
def test_buffers_that_do_not_fit_are_refused(run, buffer):
    with pytest.raises(BadRecord, match=r"into\['a.weight'\] must be contiguous"):
        read_tensors(run.folder(1), run.manifest(1), into={"a.weight": buffer})


def test_a_buffer_that_nothing_is_read_into_is_refused(run):
    with pytest.raises(BadRecord, match=r"into\['a.weight'\] is not among"):
        read_tensors(run.folder(1), run.manifest(1), names=["b.weight"], into=tensors(1))


def test_an_aliass_buffer_must_be_its_tensors(root):
    weight = torch.randn(3)
    run, manifest = written(root, {"x": weight, "y": weight}, {"y": "x"})
    shared = torch.zeros(3)
    found = read_tensors(run.folder(1), manifest, into={"x": shared, "y": shared})
    assert found["y"].equal(weight)
    with pytest.raises(BadRecord, match="must share memory with 'x'"):
        read_tensors(run.folder(1), manifest, into={"x": shared, "y": torch.zeros(3)})


class Clock:
    def __init__(self):
        self.now, self.naps = 0.0, []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.naps.append(seconds)
        self.now += seconds


def test_a_pace_is_kept_without_bursts():
    clock = Clock()
    pace = Pace(100.0, None, clock=clock, sleep=clock.sleep)
    for _ in range(5):
        pace.spend(100)
    assert clock.now == pytest.approx(4.0)  # the first is free, each other waits for the one before
    clock.now += 60
    pace.spend(100)
    pace.spend(100)
    assert clock.now == pytest.approx(65.0)
    assert max(clock.naps) <= NAP_S


def test_a_pace_without_a_rate_never_sleeps():
    pace = Pace(sleep=lambda seconds: pytest.fail("slept"))
    pace.spend(1 << 40)


@pytest.mark.parametrize("rate", [0, -1.0])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(ValueError, match="bytes_per_second"):
        Pace(rate)


def test_a_paced_reader_notices_cancellation_while_it_waits():
    clock = Clock()
    pace = Pace(1.0, lambda: clock.now > 3, clock=clock, sleep=clock.sleep)
    pace.spend(1000)
    with pytest.raises(Cancelled):
        pace.spend(1)
    assert clock.now < 3 + 2 * NAP_S


@pytest.mark.parametrize("threads", [1, 2])
def test_reading_stops_between_chunks_when_cancelled(large, monkeypatch, threads):
    run, manifest, _ = large
    reads = []
    real = os.preadv

    def counted(fd, buffers, at):
        reads.append(at)
        return real(fd, buffers, at)

    monkeypatch.setattr(os, "preadv", counted)

    def done():
        return len(reads) >= 2

    with pytest.raises(Cancelled):
        read_tensors(run.folder(1), manifest, pace=Pace(cancelled=done), threads=threads)
    assert 2 <= len(reads) <= 2 + threads
    with pytest.raises(Cancelled):
        verify(run, 1, cancelled=lambda: True)


def test_the_rate_covers_verifying_and_reading(large, monkeypatch):
    run, manifest, _ = large
    spent = []
    monkeypatch.setattr(Pace, "spend", lambda self, count: spent.append((self._rate, count)))
    verify(run, 1, bytes_per_second=2e7)
    assert {rate for rate, _ in spent} == {2e7, None}  # headers are read again without a limit
    assert sum(count for rate, count in spent if rate) == manifest.total
    assert max(count for _, count in spent) == 1_000_000  # what it may read in 50 ms
    spent.clear()
    read_tensors(run.folder(1), manifest, pace=Pace(7e9))
    assert spent
    assert {rate for rate, _ in spent} == {7e9}


def test_progress_ends_at_the_whole(run):
    seen = []
    manifest = verify(run, 1, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (manifest.total, manifest.total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len(seen) == len(manifest.files)


def flipping(monkeypatch, times):
    """The first `times` reads of anything come back with a bit flipped, as from a bad cache."""
    real, advised = os.preadv, []
    left = [times]

    def preadv(fd, buffers, at):
        got = real(fd, buffers, at)
        if got and left[0]:
            left[0] -= 1
            buffers[0][0] ^= 1
        return got

    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr(os, "posix_fadvise", lambda *arguments: advised.append(arguments[3]))
    return advised


def test_damage_in_the_cache_alone_is_read_past_once(run, monkeypatch):
    advised = flipping(monkeypatch, 1)
    assert loads(run, 1)
    assert advised == [os.POSIX_FADV_DONTNEED]


def test_damage_on_the_disk_is_read_twice_then_reported(run, monkeypatch):
    advised = flipping(monkeypatch, 2)
    with pytest.raises(Corrupt):
        read_tensors(run.folder(1), run.manifest(1), names=["a.weight"])
    assert advised == [os.POSIX_FADV_DONTNEED]


def test_verifying_looks_twice_too(run, monkeypatch):
    advised = flipping(monkeypatch, 1)
    assert is_whole(run, 1)
    assert advised == [os.POSIX_FADV_DONTNEED]


def test_short_reads_are_completed(large, monkeypatch):
    run, manifest, state = large
    real = os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda fd, buffers, at: real(fd, [buffers[0][:1_000_001]], at)
    )
    found = read_tensors(run.folder(1), manifest)
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert is_whole(run, 1)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_a_disk_that_cannot_read_is_not_taken_for_damage(run, monkeypatch, code):
    make(run, 2)
    make(run, 3)
    real, shard = os.preadv, os.stat(run.folder(3) / "model/model-00001-of-00002.safetensors")

    def preadv(fd, buffers, at):
        if os.fstat(fd).st_ino == shard.st_ino:
            raise OSError(code, os.strerror(code))
        return real(fd, buffers, at)

    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(Unreadable, match="model-00001") as caught:
        verify(run, 3)
    assert caught.value.retryable
    with pytest.raises(Unreadable):
        is_whole(run, 3)
    # The resume goes on from what can be read; retention waits for the disk to be well.
    assert run.latest().step == 2
    assert prunable(run, keep=1) == [1]
