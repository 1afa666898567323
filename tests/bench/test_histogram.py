from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.load.histogram import Histogram

VALUES = st.lists(st.integers(0, 10**13), min_size=1, max_size=200)


def recorded(values):
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


@given(VALUES, st.floats(0.01, 100))
def test_a_percentile_is_at_most_a_bucket_above_the_exact_one(values, percent):
    rank = max(0, math.ceil(len(values) * percent / 100) - 1)
    exact = sorted(values)[rank]
    found = recorded(values).percentile(percent) * 1e9
    assert exact - 1e-3 <= found <= exact * (1 + 1 / 128) + 1e-3


@given(VALUES, VALUES)
def test_histograms_add_up(first, second):
    both = recorded(first)
    both.add(recorded(second))
    assert both.to_json() == recorded(first + second).to_json()
    assert both.count == len(first) + len(second)


@given(VALUES)
def test_a_histogram_travels_as_json(values):
    histogram = recorded(values)
    back = Histogram.from_json(json.loads(json.dumps(histogram.to_json())))
    assert back.to_json() == histogram.to_json()
    assert back.mean == histogram.mean == pytest.approx(sum(values) / len(values) / 1e9)


def test_the_share_within_a_time_limit():
    histogram = Histogram.of([0.001, 0.002, 0.004, 0.1])
    assert histogram.share_within(0.01) == 0.75
    assert histogram.share_within(1) == 1
    assert histogram.milliseconds(50)["p50"] == pytest.approx(2, rel=1 / 128)


def test_nothing_recorded_is_not_a_number():
    assert math.isnan(Histogram().percentile(50))
    assert math.isnan(Histogram().mean)
