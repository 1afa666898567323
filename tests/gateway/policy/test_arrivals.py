"""The arrival rate: right when steady, quick when it changes, silent before anything came."""

from __future__ import annotations

import random

import pytest

from gateway.policy.arrivals import ArrivalRate


def feed(rate, per_second, start, end, *, rows=1, rng=None):
    now = start
    while True:
        now += rng.expovariate(per_second) if rng else 1.0 / per_second
        if now >= end:
            return
        rate.observe(now, rows)


def test_before_anything_arrived_the_rate_is_zero():
    assert ArrivalRate().rate(1e6) == 0.0


def test_the_first_arrivals_raise_it_without_a_jump():
    rate = ArrivalRate(0.1, 1.0)
    for i in range(10):
        rate.observe(5000.0 + i * 1e-4, 1)
    # A hundred thousand per second were they to go on; ten are no proof of that.
    assert rate.rate(5000.01) < 200.0


@pytest.mark.parametrize("per_second", [20.0, 1000.0])
def test_a_steady_stream_is_measured(per_second):
    rate = ArrivalRate(0.1, 2.0)
    feed(rate, per_second, 100.0, 120.0)
    assert rate.rate(120.0) == pytest.approx(per_second, rel=0.05)


def test_rows_count_not_requests():
    rate = ArrivalRate(0.1, 2.0)
    feed(rate, 100.0, 0.0, 20.0, rows=8)
    assert rate.rate(20.0) == pytest.approx(800.0, rel=0.05)


def test_chance_is_not_taken_for_change():
    rng, rate = random.Random(4), ArrivalRate(0.025, 0.3)
    feed(rate, 2000.0, 0.0, 2.0, rng=rng)
    seen = []
    for step in range(100):
        feed(rate, 2000.0, 2.0 + step * 0.02, 2.02 + step * 0.02, rng=rng)
        seen.append(rate.rate(2.02 + step * 0.02))
    within = sum(abs(value - 2000.0) < 200.0 for value in seen)
    assert within > 90


def test_a_burst_is_believed_within_two_fast_spans_and_a_lull_too():
    rate = ArrivalRate(0.025, 0.3)
    feed(rate, 1000.0, 0.0, 2.0)
    feed(rate, 4000.0, 2.0, 2.05)
    assert rate.rate(2.05) > 3000.0
    feed(rate, 4000.0, 2.05, 4.0)
    feed(rate, 200.0, 4.0, 4.1)
    assert rate.rate(4.1) < 800.0


def test_silence_brings_it_down():
    rate = ArrivalRate(0.025, 0.3)
    feed(rate, 1000.0, 0.0, 2.0)
    assert rate.rate(2.0 + 10 * 0.3) < 10.0


def test_asking_changes_nothing_much():
    asked, unasked = ArrivalRate(0.1, 1.0), ArrivalRate(0.1, 1.0)
    for i in range(2000):
        now = i * 0.001
        asked.observe(now, 1)
        unasked.observe(now, 1)
        asked.rate(now)
    assert asked.rate(2.0) == pytest.approx(unasked.rate(2.0), rel=0.02)


@pytest.mark.parametrize("spans", [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0)])
def test_spans_must_be_in_order(spans):
    with pytest.raises(ValueError, match="fast_s must lie between 0 and slow_s"):
        ArrivalRate(*spans)
