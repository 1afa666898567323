"""Rates, lengths and the load that a gateway routes by."""

from __future__ import annotations

import pytest

from backends.llm.engine.load import Length, Meter, Rate
from tests.backends.llm.engine.test_scheduler import Driver


def test_a_rate_is_of_late_work_and_nothing_at_first() -> None:
    rate = Rate()
    assert rate.value == 0
    for _ in range(100):
        rate.observe(10, 0.1)
    assert rate.value == pytest.approx(100)
    for _ in range(100):
        rate.observe(1, 0.1)
    assert 10 < rate.value < 15


def test_what_remains_is_the_mean_or_as_much_again_and_never_more_than_may_come() -> None:
    length = Length()
    assert length.remaining(0, 40) == 40
    for _ in range(200):
        length.observe(20)
    assert length.remaining(0, 100) == 20
    assert length.remaining(15, 100) == 8  # half of what was generated is more than the mean's rest
    assert length.remaining(40, 100) == 20
    assert length.remaining(40, 7) == 7
    assert length.remaining(40, 0) == 0


def test_the_load_counts_what_runs_and_what_waits() -> None:
    driver, meter = Driver(), Meter()
    driver.submit(20, 4)
    driver.submit(3, 5, token=8, n=4)
    driver.submit(8, 2, token=9)
    before = meter.load(driver.scheduler)
    assert (before.running, before.waiting, before.prompt_tokens) == (0, 3, 31)
    assert before.output_tokens == 4 + 4 * 5 + 2
    assert before.pages_free == before.pages_total
    plan = driver.plan()
    assert plan is not None
    meter.step(plan, 0.5)
    load = meter.load(driver.scheduler)
    assert load.running == 1 and load.waiting == 2
    assert load.prompt_tokens == 20 - 9 + 11
    assert load.prefill_rate == 18 and load.decode_rate == 0
    driver.land()
    driver.drain()
    end = meter.load(driver.scheduler)
    assert end.running == end.waiting == end.prompt_tokens == end.output_tokens == 0
    assert end.pages_free + end.pages_cached == end.pages_total
    assert end.prompt_total == 31


def test_a_mixed_step_counts_for_prompts_and_for_answers() -> None:
    driver, meter = Driver(), Meter()
    driver.submit(2, 8)
    driver.plan()
    driver.land()
    driver.submit(20, 4)
    plan = driver.plan()
    assert plan is not None
    meter.step(plan, 0.5)
    load = meter.load(driver.scheduler)
    assert (load.prefill_rate, load.decode_rate) == (16, 2)
