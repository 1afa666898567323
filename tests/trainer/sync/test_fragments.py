"""Fragments: every parameter leaves once a round and lands before it leaves again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trainer.sync.fragments import fragments


@st.composite
def plans(draw):
    sizes = {f"p{i}": n for i, n in enumerate(draw(st.lists(st.integers(0, 1000), min_size=1)))}
    every = draw(st.integers(1, 12))
    overlap = draw(st.integers(0, every - 1))
    return sizes, draw(st.integers(1, every)), every, overlap


@given(plans())
def test_each_parameter_leaves_once_a_round(plan):
    sizes, count, every, overlap = plan
    found = fragments(sizes, count, every, overlap)
    assert [name for fragment in found for name in fragment.names] == list(sizes)
    assert len(found) == min(count, len(sizes)) and all(fragment.names for fragment in found)
    for begin in (1, 5):
        left = [f for step in range(begin, begin + every) for f in found if f.leaves(step)]
        assert sorted(n for f in left for n in f.names) == sorted(sizes)
    assert found[-1].leaves(every)


@given(plans())
def test_what_left_lands_before_it_leaves_again(plan):
    sizes, count, every, overlap = plan
    for fragment in fragments(sizes, count, every, overlap):
        full = False
        for step in range(1, 5 * every + 1):
            if full and fragment.lands(step):
                full = False
            if fragment.leaves(step):
                assert not full
                full = True
            if not overlap:
                full = False
            assert full == fragment.under_way(step)


def test_fragments_are_about_equally_large():
    found = fragments({f"p{i}": 10 for i in range(12)}, 4, 8, 0)
    assert [len(fragment.names) for fragment in found] == [3, 3, 3, 3]
    assert [fragment.phase for fragment in found] == [2, 4, 6, 0]
