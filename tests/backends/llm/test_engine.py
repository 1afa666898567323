"""The engine against the slowest way to do it: one sequence at a time on an engine of its own."""

from __future__ import annotations

import random

import pytest

from tests.backends.llm.fakes import VOCABULARY, HashNetwork, alone, generation, run

AHEAD = pytest.mark.parametrize("ahead", [0, 1])


def prompts(count: int, seed: int = 0, longest: int = 40) -> list[list[int]]:
    chance = random.Random(seed)
    return [
        [chance.randrange(VOCABULARY) for _ in range(chance.randint(1, longest))]
        for _ in range(count)
    ]


@AHEAD
def test_batched_equals_one_by_one_greedy(ahead: int) -> None:
    asked = [generation(i, p, 4 + i % 13) for i, p in enumerate(prompts(24))]
    together, _ = run(asked, ahead=ahead, token_budget=32, max_running=8)
    for each in asked:
        assert together.tokens[each.key, 0] == alone(each).tokens[each.key, 0]
        assert len(together.tokens[each.key, 0]) == each.sampling.max_tokens
        assert together.finish[each.key, 0].finish == "length"


@AHEAD
def test_batched_equals_one_by_one_with_a_seed(ahead: int) -> None:
    asked = [
        generation(i, p, 10, temperature=0.8, top_p=0.9, seed=i) for i, p in enumerate(prompts(16))
    ]
    together, _ = run(asked, ahead=ahead, token_budget=24, max_running=8)
    for each in asked:
        assert together.tokens[each.key, 0] == alone(each).tokens[each.key, 0]


@AHEAD
def test_preempted_equals_not_preempted(ahead: int) -> None:
    asked = [generation(i, p, 30, temperature=1.0, seed=i) for i, p in enumerate(prompts(8))]
    roomy, _ = run(asked, ahead=ahead)
    tight, engine = run(asked, ahead=ahead, pages=20, max_running=8)
    assert engine._scheduler.preemptions > 0
    assert tight.tokens == roomy.tokens


@AHEAD
def test_chunked_prefill_equals_whole(ahead: int) -> None:
    asked = [generation(i, p, 6) for i, p in enumerate(prompts(6, longest=100))]
    whole, _ = run(asked, ahead=ahead, token_budget=2000)
    network = HashNetwork()
    chunked, _ = run(asked, network, ahead=ahead, token_budget=7, max_running=7)
    assert max(tokens for tokens, _ in network.steps) <= 7
    assert chunked.tokens == whole.tokens


@AHEAD
def test_prefix_cache_on_equals_off(ahead: int) -> None:
    shared = prompts(1, seed=5)[0] * 3
    asked = [generation(i, shared + p, 6) for i, p in enumerate(prompts(8))]
    off, engine = run(asked, ahead=ahead, reuse=False, max_running=2)
    assert engine.load().hit_tokens == 0
    on, engine = run(asked, ahead=ahead, max_running=2)
    assert engine.load().hit_tokens >= 6 * (len(shared) // 4 * 4)
    assert on.tokens == off.tokens
    assert on.finish[7, 0].cached >= len(shared) // 4 * 4


@AHEAD
def test_choices_that_share_pages_equal_choices_of_their_own(ahead: int) -> None:
    for prompt in prompts(5, seed=3):
        asked = generation("n", prompt, 9, n=4, temperature=1.2, seed=11)
        shared, _ = run([asked], ahead=ahead, token_budget=8, max_running=4)
        off, _ = run([asked], ahead=ahead, reuse=False, pages=400)
        tight, _ = run([asked], ahead=ahead, pages=-(-(len(prompt) + 9) // 4))
        assert shared.tokens == off.tokens == tight.tokens
        assert len({tuple(tokens) for tokens in shared.tokens.values()}) == 4
