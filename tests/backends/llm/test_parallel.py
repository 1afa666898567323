"""Two ranks against one: the same tokens, through real processes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from backends.errors import ModelFailed, NotReady
from backends.llm.engine import Engine
from backends.llm.network import DecoderNetwork, Network
from backends.llm.parallel import Crew
from backends.models.decoder import Decoder
from tests.backends.llm.engine.test_engine import prompts
from tests.backends.llm.fakes import Listener, generation, run
from tests.backends.models.shapes import config

# A load that was given up may still be drawing beside the next one, from the same generator.
_drawing = threading.Lock()


def make(request: Any, rank: int, world: int, group: dist.ProcessGroup | None) -> Network:
    """A tiny decoder of random weights, made of a seed on each rank; or what the tests need."""
    if request == f"fail on {rank}":
        raise RuntimeError("no weights today")
    if request == f"end {rank}":
        raise SystemExit
    with _drawing:
        torch.manual_seed(int(request) if str(request).isdigit() else 0)
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
        with pytest.raises(ModelFailed, match=words):
            crew.load(request)
    with pytest.raises(RuntimeError, match="no weights"):
        crew.load("fail on 0")
    with pytest.raises(ModelFailed, match="another version"):
        crew.load("3", cancelled=lambda: True)
    one, _ = run(asked()[:2], make("4", 0, 1, None))
    two, _ = run(asked()[:2], crew.load("4"))
    assert tokens(two) == tokens(one)


def test_one_rank_that_votes_no_leaves_the_old_version_serving(crew: Crew) -> None:
    listener = Listener()
    engine = Engine(crew.load("3"), listener, pages=64, page_size=4)
    engine.start()
    engine.submit(generation("during", [1, 2], 40))
    for voter in (0, 1):
        with pytest.raises((ModelFailed, RuntimeError), match="no weights today"):
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
