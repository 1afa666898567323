"""Admission: tenants' limits, reservations that are settled once, and truthful waiting times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gateway.policy.admission import Admission, Admitted, Refused, TenantLimits
from gateway.policy.bucket import TokenBucket


def admission(capacity: int = 4096, **limits: float) -> Admission:
    same = TenantLimits(**limits)
    return Admission(lambda tenant: same, capacity=capacity)


# ----------------------------------------------------------------------------------------- bucket


def test_a_bucket_fills_at_its_rate_up_to_its_burst():
    bucket = TokenBucket(rate=2.0, burst=10.0)
    assert bucket.level(5.0) == 10.0
    bucket.charge(10.0, 5.0)
    assert bucket.level(7.0) == 4.0
    assert bucket.level(99.0) == 10.0


def test_a_bucket_may_be_overdrawn_and_given_back():
    bucket = TokenBucket(rate=1.0, burst=10.0)
    bucket.charge(25.0, 0.0)
    assert bucket.level(0.0) == -15.0 and bucket.wait(1.0, 0.0) == 16.0
    bucket.charge(-100.0, 0.0)
    assert bucket.level(0.0) == 10.0


def test_more_than_the_burst_passes_when_full_and_is_owed():
    bucket = TokenBucket(rate=1.0, burst=10.0)
    assert bucket.wait(50.0, 0.0) == 0.0
    bucket.charge(50.0, 0.0)
    assert bucket.wait(1.0, 0.0) == 41.0


def test_a_clock_that_stands_still_or_goes_back_fills_nothing():
    bucket = TokenBucket(rate=1.0, burst=10.0)
    bucket.charge(5.0, 10.0)
    assert bucket.level(9.0) == bucket.level(10.0) == 5.0


@pytest.mark.parametrize(("rate", "burst"), [(0.0, 1.0), (1.0, 0.0), (float("inf"), 1.0)])
def test_a_bucket_needs_a_rate_and_a_burst(rate, burst):
    with pytest.raises(ValueError, match="rate and burst"):
        TokenBucket(rate, burst)


@given(
    st.floats(0.01, 1e4),
    st.floats(0.1, 1e4),
    st.lists(st.tuples(st.floats(0.0, 50.0), st.floats(0.0, 2e4)), max_size=50),
    st.floats(0.0, 2e4),
)
def test_the_wait_is_the_truth(rate, burst, uses, amount):
    bucket, now = TokenBucket(rate, burst), 0.0
    for seconds, used in uses:
        now += seconds
        bucket.charge(used, now)
    wait = bucket.wait(amount, now)
    if wait * rate > 1e-6 * burst:  # else it is within what rounding may hide
        assert bucket.wait(amount, now + 0.99 * wait) > 0.0
        assert bucket.wait(amount, now + wait * (1 + 1e-12)) <= 1e-6 * wait


# -------------------------------------------------------------------------------------- admission


def test_requests_per_minute():
    gate = admission(requests_per_minute=60, burst_s=2.0)
    assert all(isinstance(gate.admit("a", 0.0), Admitted) for _ in range(2))
    assert gate.admit("a", 0.0) == Refused(1.0, "requests")
    assert isinstance(gate.admit("b", 0.0), Admitted)  # its own limit
    assert isinstance(gate.admit("a", 1.0), Admitted)


def test_tokens_are_reserved_then_settled():
    gate = admission(tokens_per_minute=6000, burst_s=10.0)  # 100 a second, 1000 at once
    first = gate.admit("a", 0.0, tokens=800)
    assert gate.admit("a", 0.0, tokens=300) == Refused(1.0, "tokens")
    assert first.settle(0.0, tokens=100)  # 700 come back
    second = gate.admit("a", 0.0, tokens=900)
    assert isinstance(second, Admitted)
    assert second.settle(0.0, tokens=1400)  # 500 more than reserved: owed
    assert gate.admit("a", 0.0, tokens=1) == Refused(pytest.approx(5.01), "tokens")


def test_a_refusal_takes_nothing():
    gate = admission(requests_per_minute=60, tokens_per_minute=60, burst_s=1.0)
    assert isinstance(gate.admit("a", 0.0), Admitted)
    for _ in range(5):
        assert gate.admit("a", 0.0).retry_after == 1.0
    assert isinstance(gate.admit("a", 1.0, tokens=1), Admitted)


def test_concurrency_has_no_time_to_promise():
    gate = admission(concurrency=2)
    one, _ = gate.admit("a", 0.0), gate.admit("a", 0.0)
    assert gate.admit("a", 0.0) == Refused(None, "concurrency")
    assert one.settle(1.0) and not one.settle(1.0)
    assert gate.in_flight("a") == 1
    assert isinstance(gate.admit("a", 1.0), Admitted)
    assert gate.admit("a", 1.0) == Refused(None, "concurrency")


def test_no_limits_no_account():
    gate = Admission(lambda tenant: None)
    for n in range(100):
        assert gate.admit(f"t{n}", 0.0, tokens=1e9).settle(0.0, tokens=1e9)
    assert len(gate) == 0


def test_limits_that_change_hold_at_once_and_forgive_nothing():
    table = {"a": TenantLimits(requests_per_minute=600, burst_s=1.0)}
    gate = Admission(table.get)
    for _ in range(10):
        assert isinstance(gate.admit("a", 0.0), Admitted)
    table["a"] = TenantLimits(requests_per_minute=1200, burst_s=1.0)
    assert sum(isinstance(gate.admit("a", 0.0), Admitted) for _ in range(30)) == 10
    table["a"] = TenantLimits(requests_per_minute=60, burst_s=1.0)
    assert gate.admit("a", 0.0) == Refused(20.0, "requests")  # 19 of 20 overdrawn, and one


def test_idle_accounts_make_room_and_busy_ones_do_not():
    gate = admission(capacity=3, concurrency=1, requests_per_minute=60, burst_s=5.0)
    held = [gate.admit(f"t{n}", 0.0) for n in range(3)]
    assert isinstance(gate.admit("late", 0.0), Admitted)  # in the shared account
    assert gate.admit("later", 0.0) == Refused(None, "concurrency")
    assert len(gate) == 3
    held[1].settle(1.0)
    assert isinstance(gate.admit("new", 1.0), Admitted)
    assert len(gate) == 3 and gate.in_flight("new") == 1 and gate.in_flight("t1") == 0


@given(st.lists(st.text(max_size=3), max_size=200), st.integers(1, 8))
def test_the_table_never_outgrows_its_capacity(tenants, capacity):
    gate = admission(capacity=capacity, requests_per_minute=60)
    for now, tenant in enumerate(tenants):
        found = gate.admit(tenant, float(now))
        assert len(gate) <= capacity
        if isinstance(found, Admitted) and now % 3:
            found.settle(float(now))


@pytest.mark.parametrize("field", ["requests_per_minute", "tokens_per_minute", "concurrency"])
def test_a_limit_of_nothing_is_refused_by_name(field):
    with pytest.raises(ValueError, match=f"{field} must be above 0"):
        TenantLimits(**{field: 0})


def test_negative_tokens_are_refused():
    with pytest.raises(ValueError, match="tokens"):
        admission(tokens_per_minute=60).admit("a", 0.0, tokens=-1.0)


class Accounts(RuleBasedStateMachine):
    """Counts balance, and a tenant never has more in flight than its limit."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = admission(concurrency=3, tokens_per_minute=600, burst_s=10.0)
        self.now, self.used = 0.0, 0.0
        self.held: dict[str, list[Admitted]] = {"a": [], "b": []}

    @rule(tenant=st.sampled_from("ab"), tokens=st.floats(0.0, 150.0))
    def admit(self, tenant: str, tokens: float) -> None:
        found = self.gate.admit(tenant, self.now, tokens=tokens)
        if isinstance(found, Admitted):
            self.held[tenant].append(found)
            self.used += tokens if tenant == "a" else 0.0
        elif found.retry_after is not None:
            later = self.gate.admit(tenant, self.now + found.retry_after * 1.001, tokens=tokens)
            assert isinstance(later, Admitted)
            self.now += found.retry_after * 1.001
            self.held[tenant].append(later)
            self.used += tokens if tenant == "a" else 0.0

    @rule(tenant=st.sampled_from("ab"), tokens=st.none() | st.floats(0.0, 300.0))
    def settle(self, tenant: str, tokens: float | None) -> None:
        if self.held[tenant]:
            admitted = self.held[tenant].pop()
            assert admitted.settle(self.now, tokens)
            assert not admitted.settle(self.now, tokens)
            if tenant == "a" and tokens is not None:
                self.used += tokens - admitted.reserved

    @rule(seconds=st.floats(0.0, 20.0))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def counts_balance(self) -> None:
        for tenant, held in self.held.items():
            assert self.gate.in_flight(tenant) == len(held) <= 3

    @invariant()
    def no_more_tokens_than_the_rate_gives(self) -> None:
        """What is not settled yet may be on top: three requests of twice the reservation."""
        assert self.used <= 100.0 + 10.0 * self.now + 150.0 + 3 * 300.0 + 1e-6


TestAccounts = Accounts.TestCase
