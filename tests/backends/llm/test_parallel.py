"""Two ranks against one: the same tokens, through real processes."""

from __future__ import annotations

import errno
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist

from backends.checkpoint import Cancelled, Corrupt, Run
from backends.errors import NotReady
from backends.llm.engine import Engine
from backends.llm.network import DecoderNetwork, Network
from backends.llm.parallel import Crew
from backends.llm.weights import Reading, read_part
from backends.models.decoder import Decoder
from backends.reload_terms import Failure, LoadFailed
from tests.backends.llm.engine.test_engine import prompts
from tests.backends.llm.fakes import Listener, generation, run
from tests.backends.llm.test_replica import commit_decoder
from tests.backends.models.shapes import config

_loading = threading.Lock()


def make(
    request: Any,
    rank: int,
    world: int,
    group: dist.ProcessGroup | None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Network:
    """A tiny decoder of random weights, made of a seed on each rank; or what the tests need."""
    assert _loading.acquire(blocking=False), "two loads at a time on this rank"
    try:
        if isinstance(request, Held | Read):
            return request.make(rank, world, group, cancelled)
        if request == f"fail on {rank}":
            raise RuntimeError("no weights today")
        if request == f"end {rank}":
            raise SystemExit
        return drawn(int(request) if str(request).isdigit() else 0, rank, world, group)
    finally:
        _loading.release()


class Held(NamedTuple):
    """A load that rank 1 does not end: it says in `folder` that it has begun, and goes on until it
    is cancelled, or until `let_go` is there, where it does not listen."""

    folder: Path
    deaf: bool = False

    def make(
        self, rank: int, world: int, group: dist.ProcessGroup | None, cancelled: Callable[[], bool]
    ) -> Network:
        if rank == 1:
            self.begun.touch()
            while not (self.let_go.exists() if self.deaf else cancelled()):
                time.sleep(0.005)  # no event crosses processes
            self.ended.touch()
            raise Cancelled("as it was told")
        return drawn(0, rank, world, group)

    @property
    def begun(self) -> Path:
        return self.folder / "begun"

    @property
    def ended(self) -> Path:
        return self.folder / "ended"

    @property
    def let_go(self) -> Path:
        return self.folder / "let go"


class Read(NamedTuple):
    """A checkpoint; rank 1 says in `begun` that it reads it. `code`: what its disk says."""

    reading: Reading
    begun: Path
    code: int = 0

    def make(
        self, rank: int, world: int, group: dist.ProcessGroup | None, cancelled: Callable[[], bool]
    ) -> Network:
        assert group is not None
        real = os.preadv
        if rank == 1:
            self.begun.touch()

        def preadv(*arguments: Any) -> int:
            raise OSError(self.code, os.strerror(self.code))

        if rank == 1 and self.code:
            os.preadv = preadv
        try:
            return read_part(self.reading, rank, world, group, cancelled)
        finally:
            os.preadv = real


def drawn(seed: int, rank: int, world: int, group: dist.ProcessGroup | None) -> Network:
    torch.manual_seed(seed)
    model = Decoder(**config("qwen3")).eval().requires_grad_(False)
    network = DecoderNetwork(model.config, dtype=torch.float32, rank=rank, world=world, group=group)
    network.load_(model.state_dict())
    return network


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    crew = Crew(2, make, threads=1)
    yield crew
    crew.close()
    assert not any(process.is_alive() for process in crew.processes)


@pytest.fixture
def committed(tmp_path: Path) -> Reading:
    run = Run(tmp_path / "run")
    commit_decoder(run, 1)
    return Reading(run.folder(1), run.manifest(1), "fp32", "cpu", 4, None)


def asked() -> list[Any]:
    plain = [generation(i, p, 8) for i, p in enumerate(prompts(5, longest=30))]
    chance = {"temperature": 0.9, "top_p": 0.95}
    random = [generation(10 + i, p, 8, seed=i, **chance) for i, p in enumerate(prompts(3, seed=4))]
    return [*plain, *random, generation("n", [5] * 9, 8, n=3, seed=1, temperature=1.0)]


def tokens(listener: Listener) -> dict[Any, list[int]]:
    return dict(listener.tokens)


@pytest.mark.parametrize("ahead", [0, 1])
def test_two_ranks_say_what_one_says(crew: Crew, ahead: int) -> None:
    options: dict[str, Any] = {"token_budget": 16, "max_running": 6, "ahead": ahead}
    one, _ = run(asked(), make("3", 0, 1, None), **options)
    two, engine = run(asked(), crew.load("3"), **options, pages=12)
    assert tokens(two) == tokens(one)
    assert engine._scheduler.preemptions > 0


def test_a_load_that_fails_on_any_rank_fails_with_its_reason(crew: Crew) -> None:
    for request, words in (("fail on 1", "rank 1: RuntimeError: no weights"), ("end 1", "rank 1")):
        with pytest.raises(LoadFailed, match=words) as caught:
            crew.load(request)
        assert caught.value.failure is Failure.REFUSED
    with pytest.raises(RuntimeError, match="no weights"):
        crew.load("fail on 0")
    one, _ = run(asked()[:2], make("4", 0, 1, None))
    two, _ = run(asked()[:2], crew.load("4"))
    assert tokens(two) == tokens(one)


def test_a_load_that_is_given_up_ends_on_every_rank_before_the_next(
    crew: Crew, tmp_path: Path
) -> None:
    held = Held(tmp_path)
    with pytest.raises(Cancelled, match="another version"):
        crew.load(held, cancelled=held.begun.exists)
    one, _ = run(asked()[:2], make("4", 0, 1, None))
    two, _ = run(asked()[:2], crew.load("4"))
    assert held.ended.exists() and tokens(two) == tokens(one)


def test_a_load_that_fails_on_one_rank_is_given_up_on_the_others(crew: Crew) -> None:
    with pytest.raises(RuntimeError, match="no weights"):
        crew.load("fail on 0")
    crew.load("4").close()


def test_the_next_load_waits_for_one_that_does_not_listen(crew: Crew, tmp_path: Path) -> None:
    held = Held(tmp_path, deaf=True)
    with pytest.raises(Cancelled):
        crew.load(held, cancelled=held.begun.exists)
    looks = itertools.count()
    with pytest.raises(Cancelled):
        crew.load("4", cancelled=lambda: next(looks) > 3)
    assert not held.ended.exists()
    held.let_go.touch()
    crew.wait()
    assert held.ended.exists()
    crew.load("4").close()


def test_what_goes_wrong_on_another_rank_keeps_its_kind(
    crew: Crew, committed: Reading, tmp_path: Path
) -> None:
    for code in (errno.EIO, errno.ESTALE):
        with pytest.raises(LoadFailed, match="rank 1: .*" + os.strerror(code)) as caught:
            crew.load(Read(committed, tmp_path / "begun", code))
        assert caught.value.failure is Failure.TRANSIENT, "tried again"
    (shard,) = (committed.folder / "model").glob("*.safetensors")
    shard.chmod(0o644)
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(Corrupt):
        crew.load(Read(committed, tmp_path / "begun"))
    crew.load("4").close()


def test_a_read_that_is_given_up_ends_within_a_chunk(
    crew: Crew, committed: Reading, tmp_path: Path
) -> None:
    slow = Read(committed._replace(bytes_per_second=1), tmp_path / "begun")
    with pytest.raises(Cancelled):
        crew.load(slow, cancelled=slow.begun.exists)
    looks = itertools.count()
    crew.wait(cancelled=lambda: next(looks) > 1000)  # it would take days
    crew.load(Read(committed, tmp_path / "begun")).close()


def test_one_rank_that_votes_no_leaves_the_old_version_serving(crew: Crew) -> None:
    listener = Listener()
    engine = Engine(crew.load("3"), listener, pages=64, page_size=4)
    engine.start()
    engine.submit(generation("during", [1, 2], 40))
    for voter in (0, 1):
        with pytest.raises((LoadFailed, RuntimeError), match="no weights today"):
            crew.load(f"fail on {voter}")
    listener.wait(1)
    engine.submit(generation("after", [1, 2], 40))
    listener.wait(2)
    assert engine.close()
    alone, _ = run([generation("alone", [1, 2], 40)], make("3", 0, 1, None))
    (expected,) = tokens(alone).values()
    assert list(tokens(listener).values()) == [expected, expected]
    assert not crew.lost


def test_a_rank_that_is_lost_fails_steps_and_hangs_none(crew: Crew) -> None:
    """The last with this crew."""
    listener, crashes = Listener(), list[BaseException]()
    engine = Engine(crew.load("3"), listener, pages=64, page_size=4, crashed=crashes.append)
    engine.start()
    engine.submit(generation("a", [1, 2], 60, n=2))
    listener.wait_tokens("a", 3)
    crew.processes[0].kill()
    listener.wait(2)
    # By chance they had ended before it was noticed.
    engine.submit(generation("b", [1, 2], 60))
    listener.wait(3)
    assert listener.finish["b", 0].finish == "error" and crashes
    assert "out of step" in crew.lost
    with pytest.raises(NotReady, match="out of step"):
        crew.load("3")
    assert engine.close()
