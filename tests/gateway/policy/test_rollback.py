"""All replicas go back from one version, which the one that has seen most knows."""

from __future__ import annotations

import pytest

from gateway.policy.rollback import Said, Unclear, is_named, newest, resolve


def said(goal, generation, channel="stable", *others):
    return Said(channel, goal, generation, frozenset({goal, *others} - {""}))


def test_it_is_the_newest_that_any_has_seen():
    assert newest([said("1-a", 1), said("", 0), said("2-b", 2)], None) == "2-b"
    # The channel itself went back: newest is what it was pointed at last.
    assert newest([said("1-a", 4), said("2-b", 2)], None) == "1-a"


def test_a_canary_that_is_about_to_be_tried_goes_back_alone():
    both = [said("2-b", 7), said("3-c", 2, "canary")]
    assert newest(both, "canary") == "3-c"
    assert newest([said("2-b", 7), said("2-b", 2, "canary")], "canary") == "2-b"
    with pytest.raises(Unclear, match="stable is at 2-b, canary is at 3-c"):
        newest(both, None)


def test_there_must_be_one():
    for nothing in ([], [said("", 0, "")]):
        with pytest.raises(Unclear, match="no replica follows"):
            newest(nothing, None)


def test_an_operator_names_it_by_its_name_or_its_step():
    all_said = [said("20-b", 2, "stable", "1-a"), said("20-c", 1, "other")]
    assert resolve(all_said, "1") == resolve(all_said, "1-a") == "1-a"
    assert resolve(all_said, "20-c") == "20-c"
    with pytest.raises(Unclear, match="could be 20-b, 20-c"):
        resolve(all_said, "20")
    with pytest.raises(Unclear, match="known: 1-a, 20-b, 20-c"):
        resolve(all_said, "2")
    assert not is_named("20-b", "20-")
