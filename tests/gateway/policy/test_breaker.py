"""Circuit breakers: every transition, leased probes, the ejection cap and panic."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gateway.policy.breaker import (
    Breaker,
    BreakerPolicy,
    Ejection,
    Outcome,
    Permit,
    State,
    usable,
)

GOOD, BAD, NEUTRAL = Outcome.SUCCESS, Outcome.FAILURE, Outcome.NEUTRAL


class Never(random.Random):
    """Full jitter at its longest: an opening lasts all of its bound."""

    def random(self) -> float:
        return 0.0


def run(breaker: Breaker, outcomes: list[Outcome], now: float) -> State | None:
    changed = None
    for outcome in outcomes:
        permit = breaker.allow(now)
        assert permit is not None
        changed = permit.record(now, outcome) or changed
    return changed


def opened(now: float = 0.0, **policy: float) -> Breaker:
    breaker = Breaker(BreakerPolicy(**policy), Never())
    assert run(breaker, [BAD] * 5, now) is State.OPEN
    return breaker


# ------------------------------------------------------------------------------------------ opening


def test_five_failures_in_a_row_open_it():
    breaker = Breaker(rng=Never())
    assert run(breaker, [BAD] * 4 + [GOOD] + [BAD] * 4, 0.0) is None
    assert run(breaker, [BAD], 0.0) is State.OPEN
    assert not breaker.closed and breaker.allow(0.5) is None and breaker.next_probe(0.5) == 1.0


def test_less_than_half_of_ten_open_it():
    breaker = Breaker(rng=Never())
    pattern = [BAD, BAD, BAD, GOOD, BAD, BAD, GOOD, BAD, GOOD]
    assert run(breaker, pattern, 0.0) is None  # nine: too few to tell
    assert run(breaker, [BAD], 0.0) is State.OPEN


def test_exactly_half_keeps_it_closed():
    breaker = Breaker(rng=Never())
    assert run(breaker, [GOOD, BAD] * 50, 0.0) is None
    assert breaker.success_rate(0.0) == 0.5


def test_what_is_older_than_the_window_is_forgotten():
    breaker = Breaker(rng=Never())
    run(breaker, [GOOD, BAD, BAD, GOOD, BAD, BAD, GOOD, BAD, BAD], 0.0)
    assert run(breaker, [GOOD, BAD, BAD], 10.5) is None
    assert breaker.success_rate(10.5) == pytest.approx(1 / 3)
    assert breaker.success_rate(30.0) == 1.0


@given(st.lists(st.sampled_from([GOOD, NEUTRAL]), max_size=200))
def test_neutral_outcomes_never_open_it(outcomes):
    """Client errors, cancels and back-pressure, however many."""
    breaker = Breaker(rng=Never())
    assert run(breaker, [NEUTRAL] * 30 + outcomes, 0.0) is None
    assert breaker.closed and breaker.success_rate(0.0) == 1.0


def test_neutral_outcomes_neither_break_nor_extend_a_row_of_failures():
    breaker = Breaker(rng=Never())
    assert run(breaker, [BAD, NEUTRAL] * 4, 0.0) is None
    assert run(breaker, [BAD], 0.0) is State.OPEN


# ------------------------------------------------------------------------------- half-open, probes


def test_one_probe_at_a_time_and_three_successes_close_it():
    breaker = opened()
    assert breaker.state(1.0) is State.HALF_OPEN
    for attempt in range(3):
        assert breaker.ready(1.0)
        probe = breaker.allow(1.0)
        assert probe is not None and probe.probe
        assert not breaker.ready(1.0) and breaker.allow(1.0) is None
        assert probe.record(1.0, GOOD) is (State.CLOSED if attempt == 2 else None)
    assert breaker.closed and breaker.success_rate(1.0) == 1.0


def test_a_failed_probe_opens_it_for_twice_as_long():
    breaker, now = opened(), 0.0
    for bound in (2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0):
        now = breaker.reopens
        probe = breaker.allow(now)
        assert probe.record(now, BAD) is State.OPEN
        assert breaker.reopens == now + bound
    run_now = breaker.reopens
    for _ in range(3):
        breaker.allow(run_now).record(run_now, GOOD)
    assert run(breaker, [BAD] * 5, run_now + 59.0) is State.OPEN
    assert breaker.reopens == run_now + 59.0 + 60.0  # it had not held for long
    run_now = breaker.reopens
    for _ in range(3):
        breaker.allow(run_now).record(run_now, GOOD)
    assert run(breaker, [BAD] * 5, run_now + 60.0) is State.OPEN
    assert breaker.reopens == run_now + 61.0  # it had


def test_a_neutral_probe_frees_the_way_for_the_next_and_proves_nothing():
    breaker = opened()
    for _ in range(10):
        assert breaker.allow(1.0).record(1.0, NEUTRAL) is None
    assert breaker.state(1.0) is State.HALF_OPEN and breaker.ready(1.0)


def test_a_lost_probe_counts_as_failed_after_its_timeout():
    breaker = opened(probe_timeout_s=10.0)
    probe = breaker.allow(1.0)
    assert breaker.next_probe(5.0) == 11.0
    assert breaker.state(10.9) is State.HALF_OPEN
    assert breaker.state(11.0) is State.OPEN and breaker.reopens == 13.0
    assert probe.record(11.5, GOOD) is None  # too late to matter
    assert breaker.state(13.0) is State.HALF_OPEN and breaker.ready(13.0)


def test_answers_to_requests_from_before_never_count():
    breaker = Breaker(rng=Never())
    early = [breaker.allow(0.0) for _ in range(20)]
    run(breaker, [BAD] * 5, 0.0)
    assert all(permit.record(1.0, GOOD) is None for permit in early[:10])
    assert breaker.state(1.0) is State.HALF_OPEN
    assert all(permit.record(1.0, BAD) is None for permit in early[10:])
    assert breaker.state(1.0) is State.HALF_OPEN


def test_an_outcome_is_recorded_once():
    breaker = Breaker(rng=Never())
    permit = breaker.allow(0.0)
    for _ in range(10):
        permit.record(0.0, BAD)
    assert breaker.closed


@given(st.integers(0, 2**32), st.integers(1, 12))
def test_the_open_time_is_jittered_within_its_bound(seed, failures):
    breaker, now = Breaker(rng=random.Random(seed)), 0.0
    run(breaker, [BAD] * 5, now)
    for n in range(failures):
        assert 0.0 < breaker.reopens - now <= min(60.0, 2.0**n)
        now = breaker.reopens
        breaker.allow(now).record(now, BAD)


class Transitions(RuleBasedStateMachine):
    """Any order of permits, outcomes and time."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(BreakerPolicy(probe_timeout_s=5.0), random.Random(1))
        self.now = 0.0
        self.out: list[Permit] = []
        self.before = State.CLOSED

    @rule()
    def ask(self) -> None:
        ready = self.breaker.ready(self.now)
        permit = self.breaker.allow(self.now)
        assert (permit is not None) == ready
        if permit is not None:
            assert permit.probe == (self.breaker.state(self.now) is State.HALF_OPEN)
            self.out.append(permit)

    @rule()
    def ask_in_panic(self) -> None:
        permit = self.breaker.allow(self.now, panic=True)
        assert permit is not None
        self.out.append(permit)

    @rule(data=st.data(), outcome=st.sampled_from(Outcome))
    def answer(self, data: st.DataObject, outcome: Outcome) -> None:
        if self.out:
            permit = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
            state = self.breaker.state(self.now)
            changed = permit.record(self.now, outcome)
            if changed is not None:
                assert changed is self.breaker.state(self.now) and changed is not state
                assert outcome is not NEUTRAL
                assert (changed is State.CLOSED) == (outcome is GOOD)
            assert permit.record(self.now, outcome) is None

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.0, 6.0, 100.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def what_is_said_agrees(self) -> None:
        state, probe = self.breaker.state(self.now), self.breaker.next_probe(self.now)
        assert self.breaker.closed == (state is State.CLOSED) == (probe is None)
        if state is State.OPEN:
            assert self.now < probe <= self.now + 60.0
        if state is State.HALF_OPEN:
            assert self.breaker.ready(self.now) == (probe == self.now)
            assert probe <= self.now + 5.0


TestTransitions = Transitions.TestCase


# ---------------------------------------------------------------------------- the cap and the panic


class Member:
    def __init__(self, breaker: Breaker) -> None:
        self.breaker = breaker


@pytest.mark.parametrize(("count", "most"), [(1, 0), (2, 1), (3, 1), (4, 2), (9, 4)])
def test_at_most_half_of_a_pool_is_ejected(count, most):
    ejection = Ejection()
    breakers = [ejection.add(f"r{n}", rng=Never()) for n in range(count)]
    for breaker in breakers:
        for _ in range(20):
            permit = breaker.allow(0.0)
            if permit is not None:
                permit.record(0.0, BAD)
    assert sum(not breaker.closed for breaker in breakers) == most


def test_a_place_that_comes_free_is_taken_at_the_next_failure():
    ejection = Ejection()
    one, two = ejection.add("a", rng=Never()), ejection.add("b", rng=Never())
    run(one, [BAD] * 5, 0.0)
    assert run(two, [BAD] * 50, 0.0) is None
    for _ in range(3):
        one.allow(1.0).record(1.0, GOOD)
    assert run(two, [BAD], 1.0) is State.OPEN


def test_members_that_left_count_no_longer():
    ejection = Ejection()
    one, two = ejection.add("a", rng=Never()), ejection.add("b", rng=Never())
    run(one, [BAD] * 5, 0.0)
    ejection.remove("a")
    ejection.add("c", rng=Never())
    assert run(two, [BAD] * 5, 0.0) is State.OPEN


def test_a_share_above_half_is_refused():
    with pytest.raises(ValueError, match="max_share"):
        Ejection(0.6)


def test_with_fewer_than_half_able_to_serve_breakers_are_ignored():
    ejection = Ejection()
    members = [Member(ejection.add(f"r{n}", rng=Never())) for n in range(4)]
    run(members[0].breaker, [BAD] * 5, 0.0)
    able, panic = usable(members, 4, 0.0)
    assert (list(able), panic) == (members[1:], False)
    able, panic = usable(members[:2], 4, 0.0)  # two have crashed; one of the rest is open
    assert (list(able), panic) == (members[:2], True)
    assert members[0].breaker.allow(0.0) is None
    permit = members[0].breaker.allow(0.0, panic=True)
    assert permit is not None and not permit.probe
    assert usable(members[1:2], 4, 0.0) == ([members[1]], False)  # nothing open to bring back
    assert usable([], 4, 0.0) == ([], False)


def test_what_panic_lets_through_can_close_an_open_breaker():
    breaker = opened()
    for _ in range(3):
        breaker.allow(0.1, panic=True).record(0.1, GOOD)
    assert breaker.closed


def test_failures_in_panic_change_nothing():
    breaker = opened()
    for _ in range(9):
        assert breaker.allow(0.1, panic=True).record(0.1, BAD) is None
    assert breaker.reopens == 1.0
