"""Slow start's curve."""

from __future__ import annotations

import pytest

from gateway.policy.slowstart import SlowStart


def test_it_is_linear_from_its_floor_to_one():
    ramp = SlowStart(window_s=10.0, floor=0.1)
    assert [ramp.factor(age) for age in (0.0, 0.5, 2.5, 10.0, 1e9)] == [0.1, 0.1, 0.25, 1.0, 1.0]


def test_aggression_gives_weight_back_sooner():
    assert SlowStart(aggression=2.0).factor(2.5) == pytest.approx(0.5)


def test_a_window_of_zero_turns_it_off():
    assert SlowStart(window_s=0.0).factor(0.0) == 1.0


def test_a_clock_that_reads_before_the_start_is_at_the_floor():
    assert SlowStart(floor=0.2).factor(-1.0) == 0.2


@pytest.mark.parametrize(
    ("field", "value"),
    [("window_s", -1.0), ("window_s", float("inf")), ("floor", 0.0), ("aggression", 0.0)],
)
def test_bad_settings_name_the_field(field, value):
    with pytest.raises(ValueError, match=field):
        SlowStart(**{field: value})
