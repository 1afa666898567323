"""Hedging and the recent quantile that it waits for."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.hedging import Hedging
from gateway.policy.quantile import RecentQuantile


@given(st.lists(st.floats(1e-5, 1e5), min_size=40, max_size=300), st.sampled_from([0.5, 0.9, 0.95]))
def test_the_quantile_is_within_a_bucket_of_the_true_one(values, share):
    quantile = RecentQuantile(share, refresh=1)
    for value in values:
        quantile.observe(value)
    ranked = sorted(values)
    place = share * len(values)
    below, above = ranked[max(0, int(place) - 1)], ranked[min(len(values) - 1, int(place))]
    assert below / 1.05 <= quantile.value <= above * 1.05


def test_it_follows_when_the_world_changes():
    quantile, rng = RecentQuantile(0.95, window=256), random.Random(1)
    for scale in (0.01, 1.0, 0.001):
        for _ in range(6000):
            quantile.observe(scale * rng.uniform(0.5, 1.0))
        assert quantile.value == pytest.approx(scale * 0.975, rel=0.1)


def test_too_few_values_have_no_tail():
    quantile = RecentQuantile(0.95)
    for _ in range(19):
        quantile.observe(1.0)
    assert quantile.value is None
    quantile.observe(1.0)
    assert quantile.value == pytest.approx(1.0, rel=0.05)


def test_extremes_fit_the_histogram():
    quantile = RecentQuantile(0.5, refresh=1)
    for value in (0.0, 1e-30, 1e30):
        quantile.observe(value)
    assert 0.0 < quantile.value < 1e-5


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0])
def test_a_quantile_must_be_inside(share):
    with pytest.raises(ValueError, match="quantile"):
        RecentQuantile(share)


def test_nothing_is_hedged_until_the_delay_is_known():
    hedging = Hedging()
    assert hedging.delay(0.0) is None
    for n in range(100):
        hedging.observe(0.001 * (n + 1))
    assert hedging.delay(0.0) == pytest.approx(0.095, rel=0.06)


def test_a_delay_is_never_below_the_least():
    hedging = Hedging(min_delay_s=0.005)
    for _ in range(100):
        hedging.observe(0.0001)
    assert hedging.delay(0.0) == 0.005


def test_copies_stay_below_five_percent_of_requests_even_when_all_are_slow():
    hedging, copies = Hedging(), 0
    for n in range(2000):
        hedging.delay(n * 0.001)
        copies += hedging.take(n * 0.001)
    assert 80 <= copies <= 100
