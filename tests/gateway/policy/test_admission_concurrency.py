"""The adaptive limit: it grows while nobody queues, falls when they do, and knows when to stay."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.concurrency import ConcurrencyLimit, RecentLeast


def drive(limit: ConcurrencyLimit, queued: float, served: float, seconds: float, now: float = 0.0):
    """Fully used for so long, 100 answers a second."""
    while limit.take():
        pass
    for step in range(int(seconds * 100)):
        limit.observe(now + step * 0.01, queued, served)
        while limit.take():
            pass
        while limit.in_flight > limit.limit:
            limit.release()
    return now + seconds


def test_it_grows_while_nobody_queues():
    limit = ConcurrencyLimit(initial=10)
    drive(limit, queued=0.0, served=0.1, seconds=5.0)
    assert limit.limit > 50


def test_it_falls_while_requests_queue_longer_than_they_are_served():
    limit = ConcurrencyLimit(initial=500, least=4)
    drive(limit, queued=1.0, served=0.1, seconds=30.0)
    assert limit.limit < 20


def test_lasting_overload_does_not_become_normal():
    limit = ConcurrencyLimit(initial=100)
    now = drive(limit, queued=0.2, served=0.1, seconds=30.0)
    low = limit.limit
    drive(limit, queued=0.2, served=0.1, seconds=300.0, now=now)
    assert limit.limit <= low


def test_long_answers_alone_do_not_lower_it():
    limit = ConcurrencyLimit(initial=50)
    now = drive(limit, queued=0.0, served=0.1, seconds=2.0)
    before = limit.limit
    drive(limit, queued=0.1, served=30.0, seconds=2.0, now=now)
    assert limit.limit >= before


def test_it_settles_where_the_queue_is_as_long_as_tolerated():
    """A pool that serves 40 at once: beyond, each further one queues for its part."""
    limit, now = ConcurrencyLimit(initial=4), 0.0
    for _ in range(6000):
        now += 0.01
        while limit.take():
            pass
        while limit.in_flight > limit.limit:
            limit.release()
        queued = max(0.0, (limit.in_flight - 40) / 40) * 0.1
        limit.observe(now, queued, 0.1)
    assert 50 < limit.limit < 90


def test_it_stays_while_less_than_half_is_used():
    limit = ConcurrencyLimit(initial=100)
    for _ in range(40):
        assert limit.take()
    for step in range(1000):
        limit.observe(step * 0.01, 0.0, 0.1)
    assert limit.limit == 100


def test_a_few_samples_move_nothing():
    limit = ConcurrencyLimit(initial=10)
    while limit.take():
        pass
    for step in range(9):
        limit.observe(step * 10.0, 5.0, 0.1)
    assert limit.limit == 10


def test_takes_and_releases_balance():
    limit = ConcurrencyLimit(initial=4)
    assert [limit.take() for _ in range(5)] == [True] * 4 + [False]
    for _ in range(4):
        limit.release()
    with pytest.raises(AssertionError, match="more often"):
        limit.release()


@given(
    st.lists(st.tuples(st.floats(0.0, 1e6), st.floats(0.0, 1e6), st.floats(0.0, 5.0)), max_size=200)
)
def test_it_keeps_its_bounds(samples):
    limit, now = ConcurrencyLimit(initial=20, least=5, most=60), 0.0
    for queued, served, seconds in samples:
        now += seconds
        limit.take()
        limit.observe(now, queued, served)
        assert 5 <= limit.limit <= 60


@pytest.mark.parametrize(
    "options", [{"initial": 2}, {"most": 8}, {"tolerance": 0.0}, {"smoothing": 1.5}]
)
def test_bad_settings_are_refused(options):
    with pytest.raises(ValueError, match="must"):
        ConcurrencyLimit(**options)


def test_the_least_of_late_is_remembered_and_then_forgotten():
    least = RecentLeast(window_s=10.0)
    assert [least.observe(t, v) for t, v in [(0, 5.0), (1, 2.0), (2, 4.0), (11, 7.0)]] == [
        5,
        2,
        2,
        2,
    ]
    assert least.observe(22.0, 6.0) == 6.0
    assert least.observe(23.0, 9.0) == 6.0
    assert least.observe(90.0, 9.0) == 9.0
