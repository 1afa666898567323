from __future__ import annotations

import json

import pytest

from bench.record import Goal, Record, rounded


def record(**change):
    given = {
        "scenario": "s", "metric": "m", "unit": "u", "higher_is_better": True, "seed": 1,
        "ours": 100.0, "floor": 125.0, "rivals": {"a": 20.0, "b": 25.0, "c": "unavailable: no"},
    }  # fmt: skip
    return Record(**{**given, **change})


def test_the_line_has_the_form_that_the_targets_ask_for():
    line = record(goals=[Goal.least("x", 4.2, 4, "×")], detail={"more": 1}).line()
    found = json.loads(line)
    assert "\n" not in line
    assert list(found) == [
        "scenario", "metric", "unit", "ours", "floor", "rivals", "ratio_best_rival", "ratio_floor",
        "detail", "commit", "hardware", "versions", "seed",
    ]  # fmt: skip
    assert (found["ratio_best_rival"], found["ratio_floor"]) == (4, 0.8)
    assert found["rivals"]["c"] == "unavailable: no"
    assert found["detail"]["goals"][0]["met"] is True
    assert found["detail"]["more"] == 1
    assert found["hardware"]["cores"] >= 1
    assert found["versions"]["python"]


def test_a_ratio_above_one_means_that_ours_is_better_for_times_too():
    found = record(higher_is_better=False, ours=0.25, floor=0.2).to_json()
    assert found["ratio_best_rival"] == 80  # against the fastest, which takes 20
    assert found["ratio_floor"] == 0.8


@pytest.mark.parametrize("rivals", [{}, {"a": "unavailable: not installed"}])
def test_without_a_rival_there_is_no_ratio(rivals):
    assert record(rivals=rivals).to_json()["ratio_best_rival"] is None


def test_without_a_figure_of_ours_there_is_no_ratio():
    found = record(ours=None).to_json()
    assert found["ours"] is found["ratio_best_rival"] is found["ratio_floor"] is None


def test_goals_are_met_from_their_own_side():
    assert not Goal.least("x", 3.9, 4, "×").met
    assert Goal.most("x", 0.35, 0.35, "ms").met
    assert not Goal.most("x", 0.36, 0.35, "ms").met


def test_figures_are_rounded_to_what_they_are_worth():
    assert rounded({"a": [1.23456789, 73412.9], "b": "1.23456789", "c": 123456789}) == {
        "a": [1.2346, 73413.0], "b": "1.23456789", "c": 123456789,
    }  # fmt: skip
