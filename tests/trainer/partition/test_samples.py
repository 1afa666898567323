"""Shares of a batch against every division there is."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.partition.samples import cuts, last_done, reshare, shares

speeds = st.lists(st.floats(0.1, 10), min_size=1, max_size=3)


@given(st.integers(1, 12), speeds)
def test_nobody_could_be_done_earlier(total, found):
    if total < len(found):
        with pytest.raises(ValueError):
            shares(total, found)
        return
    counts = shares(total, found)
    assert sum(counts) == total and min(counts) >= 1
    every = product(range(1, total + 1), repeat=len(found))
    best = min(last_done(c, found) for c in every if sum(c) == total)
    assert last_done(counts, found) == pytest.approx(best)


@given(st.integers(100, 10_000), st.lists(st.floats(0.01, 100), min_size=2, max_size=8))
def test_shares_follow_speeds(total, found):
    counts = shares(total, found)
    assert sum(counts) == total and min(counts) >= 1
    for count, speed in zip(counts, found, strict=True):
        assert abs(count - total * speed / sum(found)) <= len(found) + 1


def test_equal_ranks_share_equally_and_stay_so():
    assert shares(24, [3.0, 3.0, 3.0]) == (8, 8, 8)
    assert reshare((8, 8, 8), [3.0, 3.1, 2.9], 0.1) is None
    assert reshare((8, 8, 8), [3.0, 3.0, 1.0], 0.1) == (11, 10, 3)
    assert cuts((11, 10, 3)) == (0, 11, 21, 24)
