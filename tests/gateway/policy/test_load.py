"""Leases: counters balance under any order of take, release, reprice and generation change."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gateway.policy.load import Lease, ReplicaLoad
from gateway.policy.slowstart import SlowStart

COSTS = st.floats(0.0, 1e6, allow_nan=False) | st.sampled_from([0.1, 0.2, 0.3])


class Leases(RuleBasedStateMachine):
    """The oracle is a list of the leases that still hold something."""

    def __init__(self) -> None:
        super().__init__()
        self.load = ReplicaLoad("a", slow_start=SlowStart())
        self.all: list[Lease] = []
        self.held: dict[Lease, float] = {}
        self.now = 0.0

    @rule(cost=COSTS)
    def take(self, cost: float) -> None:
        lease = self.load.take(cost, self.now)
        self.all.append(lease)
        self.held[lease] = cost

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.all:
            lease = data.draw(st.sampled_from(self.all))
            assert lease.release(self.now) == (lease in self.held)
            self.held.pop(lease, None)

    @rule(data=st.data(), cost=COSTS)
    def reprice(self, data: st.DataObject, cost: float) -> None:
        if self.all:
            lease = data.draw(st.sampled_from(self.all))
            lease.reprice(cost)
            if lease in self.held:
                self.held[lease] = cost

    @rule()
    def renew(self) -> None:
        before = self.load.generation
        assert self.load.renew(self.now) == before + 1
        self.held.clear()

    @rule(seconds=st.floats(0.0, 30.0))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.load.refresh(self.now)

    @invariant()
    def counters_balance(self) -> None:
        assert self.load.in_flight == len(self.held)
        assert self.load.work >= 0.0
        assert self.load.work == pytest.approx(sum(self.held.values()), abs=1e-6)
        if not self.held:
            assert self.load.work == 0.0
        assert all(lease.held == (lease in self.held) for lease in self.all)

    @invariant()
    def share_follows_the_ramp(self) -> None:
        age = self.now - self.load.started
        assert self.load.share == pytest.approx(max(0.1, min(1.0, age / 10.0)))


TestLeases = Leases.TestCase


def test_a_late_release_never_hits_the_next_incarnation():
    load = ReplicaLoad("a")
    old = load.take(5.0, 0.0)
    load.renew(1.0)
    new = load.take(2.0, 1.0)
    assert not old.release(2.0)
    assert (load.in_flight, load.work) == (1, 2.0)
    assert new.release(3.0) and not new.release(4.0)
    assert (load.in_flight, load.work, new.released) == (0, 0.0, 3.0)


def test_a_lease_remembers_what_it_met():
    load = ReplicaLoad("a")
    load.take(3.0, 0.0)
    lease = load.take(4.0, 1.5)
    assert (lease.met_in_flight, lease.met_work, lease.taken) == (1, 3.0, 1.5)
    assert (lease.replica, lease.generation) == ("a", 0)


def test_rounding_never_outlives_the_work():
    load = ReplicaLoad("a")
    leases = [load.take(0.1 * n, 0.0) for n in range(100)]
    for lease in leases[::-2] + leases[::-1]:
        lease.release(1.0)
    assert load.work == 0.0


def test_share_is_weight_by_slow_start_by_health():
    load = ReplicaLoad("a", weight=4.0, slow_start=SlowStart(window_s=10.0, floor=0.1))
    assert load.share == 4.0 and not load.ramping
    load.restart(100.0)
    assert load.ramping and load.share == pytest.approx(0.4)
    load.set_health(0.5, 105.0)
    assert load.share == pytest.approx(1.0)
    load.refresh(110.0)
    assert load.share == pytest.approx(2.0) and not load.ramping
    load.set_weight(8.0, 111.0)
    assert load.share == pytest.approx(4.0)


def test_a_drained_replica_has_no_share_until_it_comes_back_slowly():
    load = ReplicaLoad("a", slow_start=SlowStart(window_s=10.0))
    lease = load.take(1.0, 0.0)
    load.drain(0.0)
    assert load.share == 0.0
    load.refresh(1.0)
    load.set_weight(2.0, 1.0)
    assert load.share == 0.0 and lease.held
    load.undrain(2.0)
    assert load.share == pytest.approx(0.2)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_bad_numbers_are_refused(bad):
    load = ReplicaLoad("a")
    lease = load.take(1.0, 0.0)
    for call in (
        lambda: ReplicaLoad("b", bad),
        lambda: load.set_weight(bad, 0.0),
        lambda: load.set_health(bad, 0.0),
        lambda: load.take(bad, 0.0),
        lambda: lease.reprice(bad),
    ):
        with pytest.raises(ValueError, match="must be finite"):
            call()
    assert (load.in_flight, load.work, load.share) == (1, 1.0, 1.0)


@given(st.floats(0.0, 20.0), st.floats(0.0, 20.0), st.floats(0.2, 5.0))
def test_slow_start_only_rises(a, b, aggression):
    ramp = SlowStart(window_s=10.0, floor=0.05, aggression=aggression)
    low, high = sorted((a, b))
    assert 0.05 <= ramp.factor(low) <= ramp.factor(high) <= 1.0
