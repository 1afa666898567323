"""A canary's share is what was asked for, and a session's part never changes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.split import Split

shares = st.floats(0.001, 1.0)


@given(shares, st.integers(0, 400))
def test_of_n_requests_the_canary_gets_its_share(share, count):
    split = Split(share, sessions=True)
    got = sum(split.canary(None) for _ in range(count))
    assert abs(got - share * count) <= 0.5 + 1e-6


@given(st.text(max_size=20), shares, shares)
def test_a_session_keeps_its_part_and_a_larger_share_only_adds(session, one, other):
    few, many = sorted([one, other])
    small, large = Split(few, sessions=True), Split(many, sessions=True)
    assert small.canary(session) is Split(few, sessions=True).canary(session)
    assert large.canary(session) or not small.canary(session)


def test_sessions_are_shared_out_evenly():
    split = Split(0.1, sessions=True)
    got = sum(split.canary(f"session-{n}") for n in range(10_000))
    assert 900 < got < 1100


def test_by_request_a_session_decides_nothing():
    split = Split(0.5, sessions=False)
    assert [split.canary("s") for _ in range(4)] == [True, False, True, False]


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, float("nan")])
def test_a_share_is_a_part(share):
    with pytest.raises(ValueError, match="share"):
        Split(share, sessions=True)
