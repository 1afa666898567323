"""What replicas have died with: who is suspected, who is refused, and that it ends."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.deaths import (
    ALONE,
    DEADLY,
    FORGET_S,
    SENTENCE_S,
    SUSPECT,
    DeathRecord,
    Standing,
)

KEY = b"k"


def after(*alone: bool) -> DeathRecord:
    record = DeathRecord()
    for one in alone:
        record.died(KEY, 0.0, alone=one)
    return record


def test_the_first_death_says_nothing_the_second_makes_a_suspect():
    assert after().standing(KEY, 0.0) is Standing.FREE
    assert after(True).standing(KEY, 0.0) is Standing.FREE
    assert after(False, False).standing(KEY, 0.0) is Standing.SUSPECT


def test_only_who_was_alone_twice_and_at_the_last_is_convicted():
    assert after(False, True, True).standing(KEY, 0.0) is Standing.CONVICTED
    assert after(True, False, True).standing(KEY, 0.0) is Standing.CONVICTED
    assert after(False, False, True).standing(KEY, 0.0) is Standing.SUSPECT
    assert after(True, True).standing(KEY, 0.0) is Standing.SUSPECT
    assert after(True, True, False).standing(KEY, 0.0) is Standing.SUSPECT
    assert after(*[False] * 9).standing(KEY, 0.0) is Standing.SUSPECT


def test_a_sentence_ends_and_is_longer_the_next_time():
    record = after(False, True, True)
    assert record.sentence(KEY, 0.0) == SENTENCE_S
    assert record.standing(KEY, SENTENCE_S) is Standing.SUSPECT  # tried again, alone
    record.died(KEY, SENTENCE_S, alone=True)
    assert record.sentence(KEY, SENTENCE_S) == 2 * SENTENCE_S


def test_an_answer_clears_it():
    record = after(False, False)
    assert record.survived(KEY) and not record.survived(KEY)
    assert record.standing(KEY, 0.0) is Standing.FREE and not record


def test_deaths_far_apart_are_not_added_up():
    record = after(False, False)
    record.died(KEY, FORGET_S + 1, alone=True)
    assert record.deaths(KEY) == 1


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.floats(0, 90)), max_size=60))
def test_nobody_is_refused_for_ever_nor_by_less_than_it_takes(events):
    record, now = DeathRecord(capacity=4), 0.0
    deaths: dict[bytes, list[bool]] = {}
    for number, alone, pause in events:
        key = b"%d" % number
        now += pause
        record.died(key, now, alone=alone)
        deaths.setdefault(key, []).append(alone)
        assert len(record) <= 4
        for each, said in deaths.items():
            standing = record.standing(each, now)
            if standing is Standing.CONVICTED:
                assert len(said) >= DEADLY and sum(said) >= ALONE and said[-1]
            if standing is not Standing.FREE:
                assert len(said) >= SUSPECT
            assert record.sentence(each, now + FORGET_S + 0.001) == 0.0
