"""Answers are measured by the time of a token, if they have enough of them, and by their faults."""

from __future__ import annotations

from backends.llm.answered import LEAST_TOKENS, answered
from backends.llm.calls import Ended


def test_a_long_answer_says_how_long_a_token_takes():
    said = answered(Ended("v", tokens=11, seconds=2.0, failed=False), beside=3)
    assert said == ("v", 4, 0.2, 1, 0, "")


def test_a_short_answer_says_something_only_if_it_failed():
    tokens = LEAST_TOKENS - 1
    assert answered(Ended("v", tokens, seconds=2.0, failed=False), beside=3) is None
    said = answered(Ended("v", tokens, seconds=2.0, failed=True), beside=3)
    assert said == ("v", 0, 0.0, 1, 1, "")
    assert answered(Ended("v", 0, seconds=0.0, failed=True), beside=0) is not None


def test_a_long_answer_that_failed_counts_for_both():
    said = answered(Ended("v", tokens=LEAST_TOKENS, seconds=7.0, failed=True), beside=0)
    assert said == ("v", 1, 1.0, 1, 1, "")
