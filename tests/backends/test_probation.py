"""A version is judged by the one before it, with enough evidence and without being fooled."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from backends.probation import MIN_BATCHES, MIN_REQUESTS, Judge, Measures, Probation


def before(seconds=0.010, rows=64, failed=0):
    measures = Measures()
    for _ in range(100):
        measures.observe(rows, seconds, 64, failed)
    return measures


def first_complaint(probation, batches, seconds, rows=64, requests=64, failed=0):
    for number in range(1, batches + 1):
        why = probation.observe(rows, seconds, requests, failed)
        if why:
            return number, why
    return None


def test_the_same_speed_is_no_regression():
    assert first_complaint(Probation(before(), 3.0), 1000, 0.012) is None


def test_a_gross_slowdown_is_one_after_some_batches():
    number, why = first_complaint(Probation(before(), 3.0), 1000, 0.050)
    assert number == MIN_BATCHES
    assert "3 times" in why


def test_a_slowdown_below_the_floor_is_noise():
    assert first_complaint(Probation(before(seconds=50e-6), 3.0), 1000, 1e-3) is None


def test_outliers_are_outvoted():
    probation = Probation(before(), 3.0)
    for number in range(1000):
        assert probation.observe(64, 5.0 if number % 3 == 0 else 0.010, 64, 0) == ""


def test_batches_of_another_size_are_not_compared():
    assert first_complaint(Probation(before(rows=1), 3.0), 1000, 5.0, rows=64) is None


def test_failures_count_from_some_requests_on():
    number, why = first_complaint(Probation(before(), 3.0), 100, 0.010, requests=1, failed=1)
    assert number == MIN_REQUESTS
    assert "100%" in why and "0% before" in why


@pytest.mark.parametrize(("failed", "complains"), [(16, False), (32, True)])
def test_failures_are_compared_with_those_before(failed, complains):
    found = first_complaint(Probation(before(failed=16), 3.0), 100, 0.010, failed=failed)
    assert bool(found) is complains


def test_old_failures_are_forgotten_slowly():
    measures = before(failed=64)
    assert measures.failing == 1.0
    for _ in range(5000):
        measures.observe(64, 0.010, 64, 0)
    assert measures.failing < 0.05


def test_without_measures_before_times_say_nothing():
    assert first_complaint(Probation(Measures(), 3.0), 100, 9.0) is None


class Batch(NamedTuple):
    version: str
    seconds: float = 0.01
    failed: int = 0
    regressed: str = ""
    rows: int = 8
    requests: int = 1


def judged() -> Judge:
    """It knows how fast "old" was, and nothing yet of "new"."""
    judge = Judge(2.0)
    for version in ("old", "new"):
        judge.know(version)
    for _ in range(MIN_BATCHES):
        assert judge.observe(Batch("old"), "old") == ""
    return judge


def test_a_judge_compares_only_what_serves_and_only_on_probation():
    judge = judged()
    slow = Batch("new", seconds=1.0)
    for _ in range(2 * MIN_BATCHES):
        assert judge.observe(slow, "new") == ""  # on no probation yet
    judge.compare("old")
    for _ in range(2 * MIN_BATCHES):
        assert judge.observe(Batch("old", seconds=0.01), "new") == ""
    for _ in range(MIN_BATCHES - 1):
        assert judge.observe(slow, "new") == ""
        judge.compare("old")  # goes on with the same probation
    assert "took more than" in judge.observe(slow, "new")
    judge.compare(None)
    assert judge.observe(slow, "new") == ""


def test_a_judge_goes_back_at_once_where_the_version_says_so():
    judge = judged()
    wrong = Batch("new", regressed="its answers are not numbers")
    assert judge.observe(wrong, "new") == ""
    judge.compare("old")
    assert judge.observe(wrong, "new") == "its answers are not numbers"


def test_a_judge_knows_nothing_of_a_version_that_went():
    judge = judged()
    judge.compare("old")
    judge.forget("new")
    assert judge.observe(Batch("new", regressed="it is wrong"), "new") == ""
