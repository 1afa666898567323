"""What calls are taken to cost: learned from their ends, bounded by what was asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.tokens import BYTES_PER_TOKEN, TokenWork, Usage


def end(work: TokenWork, size: int, limit: int, usage: Usage, promised: int = 0, n: int = 1):
    work.ended(work.estimate(size, limit, n), usage, promised)


def test_before_anything_has_ended_the_configuration_and_the_limit_say_it():
    work = TokenWork(expected=200.0)
    estimate = work.estimate(400, 0, 1)
    assert (estimate.tokens_in, estimate.tokens_out) == (400 / BYTES_PER_TOKEN, 200.0)
    assert work.estimate(400, 50, 1).tokens_out == 50.0
    assert work.estimate(400, 50, 3).tokens_out == 150.0
    assert work.cost(estimate) == 300.0


def test_prompts_and_answers_are_learned():
    work = TokenWork()
    for _ in range(200):
        end(work, 600, 0, Usage(prompt=200, completion=40))
    estimate = work.estimate(300, 0, 1)
    assert estimate.tokens_in == pytest.approx(100, rel=0.05)
    assert estimate.tokens_out == pytest.approx(40, rel=0.05)


def test_answers_under_like_limits_tell_more_than_others():
    work = TokenWork()
    for _ in range(100):
        end(work, 400, 0, Usage(prompt=100, completion=30))
        end(work, 400, 1000, Usage(prompt=100, completion=900))
    assert work.estimate(400, 0, 1).tokens_out == pytest.approx(30, rel=0.1)
    assert work.estimate(400, 1000, 1).tokens_out == pytest.approx(900, rel=0.1)
    assert work.estimate(400, 600, 1).tokens_out == pytest.approx(600, rel=0.1)


def test_what_a_memory_promises_is_worth_what_was_found():
    work = TokenWork()
    assert work.spared({"a": 400}) == {"a": 100.0}
    for _ in range(200):  # this replica caches nothing
        end(work, 800, 0, Usage(prompt=200, completion=10, cached=0), promised=400)
    assert work.spared({"a": 400})["a"] < 2.0
    for _ in range(200):
        end(work, 800, 0, Usage(prompt=200, completion=10, cached=100), promised=400)
    assert work.spared({"a": 400})["a"] == pytest.approx(100, rel=0.05)


def test_generated_tokens_weigh_what_the_rates_say():
    work = TokenWork()
    for _ in range(500):
        work.rates(8000.0, 1000.0)
    assert work.weight == pytest.approx(8.0, rel=0.01)
    work.rates(0.0, 5.0)
    work.rates(5.0, 0.0)
    assert work.weight == pytest.approx(8.0, rel=0.01)


COUNT = st.integers(0, 2**31)


@given(st.lists(st.tuples(COUNT, COUNT, st.integers(1, 64), COUNT, COUNT, COUNT, COUNT)))
def test_whatever_replicas_say_estimates_stay_usable(ends):
    work = TokenWork()
    for size, limit, n, prompt, completion, cached, promised in ends:
        end(work, size, limit, Usage(prompt, completion, cached), promised, n)
        work.rates(float(prompt), float(completion))
        estimate = work.estimate(size, limit, n)
        assert 0.0 <= work.cost(estimate) < float("inf")
        assert not limit or estimate.tokens_out <= limit * n
        assert all(0.0 <= worth < float("inf") for worth in work.spared({"a": promised}).values())
