"""The pace of a queue: of this busy period, and not before it is known."""

from __future__ import annotations

import pytest

from gateway.policy.drain import LEAST_S, DrainRate


def test_the_pace_is_what_left_while_something_waited():
    drain = DrainRate()
    drain.left(0.0, 50.0)  # with nobody waiting it says nothing
    assert drain.rate(5.0) == 0.0
    drain.began(10.0)
    for step in range(1, 21):
        drain.left(10.0 + step / 10, 30.0)
    assert drain.rate(12.0) == pytest.approx(300.0)
    drain.began(12.0)  # it has begun already
    assert drain.rate(12.0) == pytest.approx(300.0)


def test_it_is_unknown_until_it_has_lasted_and_after_it_has_ended():
    drain = DrainRate()
    drain.began(0.0)
    drain.left(0.1, 10.0)
    assert drain.rate(LEAST_S / 2) == 0.0 and drain.rate(LEAST_S) == 10.0 / LEAST_S
    drain.emptied()
    assert drain.rate(5.0) == 0.0
    drain.began(6.0)
    assert drain.rate(9.0) == 0.0


def test_a_pace_that_changes_is_followed():
    drain = DrainRate()
    drain.began(0.0)
    now = 0.0
    for pace in (100.0, 10.0):
        for _ in range(600):
            now += 0.1
            drain.left(now, pace * 0.1)
    assert drain.rate(now) == pytest.approx(10.0, rel=0.3)
