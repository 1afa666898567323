"""Retries: the budget, what may be tried again, where and when."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.load import ReplicaLoad
from gateway.policy.retry import Attempts, Failure, RetryBudget, RetryPolicy

AGAIN = [Failure.REFUSED, Failure.LOST, Failure.ERROR, Failure.BUSY]


def attempts(budget: RetryBudget | None = None, deadline: float = 100.0, **policy) -> Attempts:
    return Attempts(RetryPolicy(**policy), budget or RetryBudget(), 0.0, deadline, random.Random(1))


# ----------------------------------------------------------------------------------------- budget


def test_three_retries_are_free_and_then_a_fifth_of_the_requests():
    budget = RetryBudget()
    assert [budget.take(0.0) for _ in range(4)] == [True, True, True, False]
    for _ in range(5):
        budget.request(0.0)
    assert budget.take(0.0) and not budget.take(0.0)


def test_the_budget_is_of_the_last_ten_seconds():
    budget = RetryBudget()
    for _ in range(100):
        budget.request(0.0)
    assert budget.left(0.0) == 23
    while budget.take(0.0):
        pass
    assert budget.left(9.5) == 0
    assert budget.left(10.5) == 3


@given(
    st.lists(
        st.tuples(st.floats(0.0, 3.0), st.booleans()),
        max_size=300,
    )
)
def test_retries_never_exceed_the_budget_in_any_window(steps):
    budget, now = RetryBudget(), 0.0
    requests, retries = [], []
    for seconds, again in steps:
        now += seconds
        if not again:
            budget.request(now)
            requests.append(now)
        elif budget.take(now):
            retries.append(now)
            # The window slides in tenths: what is within nine seconds is in it for certain.
            made = sum(t > now - 9.0 for t in retries)
            assert made <= 3 + 0.2 * sum(t > now - 10.0 for t in requests) + 1e-9


@pytest.mark.parametrize("options", [{"ratio": -0.1}, {"floor": -1}, {"window_s": 0.0}])
def test_bad_budgets_are_refused(options):
    with pytest.raises(ValueError, match="must not be negative"):
        RetryBudget(**options)


# --------------------------------------------------------------------------------------- attempts


@pytest.mark.parametrize("why", AGAIN)
def test_another_replica_is_tried_at_once_twice(why):
    request = attempts()
    assert request.failed("a", why, 0.1, others=2) == 0.0
    assert request.failed("b", why, 0.2, others=1) == 0.0
    assert request.failed("c", why, 0.3, others=5) is None
    assert request.tried == ["a", "b", "c"]


def test_what_is_at_fault_itself_or_has_begun_to_answer_is_never_repeated():
    assert attempts().failed("a", Failure.FINAL, 0.0, others=9) is None


def test_a_timeout_is_repeated_only_where_configured():
    assert attempts().failed("a", Failure.TIMEOUT, 1.0, others=9) is None
    assert attempts(after_timeout=True).failed("a", Failure.TIMEOUT, 1.0, others=9) == 0.0


def test_nothing_is_tried_again_near_the_deadline():
    assert attempts(deadline=1.0).failed("a", Failure.LOST, 0.74, others=1) == 0.0
    assert attempts(deadline=1.0).failed("a", Failure.LOST, 0.76, others=1) is None


def test_an_endless_deadline_is_no_obstacle():
    request = attempts(deadline=float("inf"))
    assert request.failed("a", Failure.LOST, 1e6, others=1) == 0.0


def test_without_budget_there_is_no_retry_and_none_is_spent_in_vain():
    budget = RetryBudget(ratio=0.0, floor=1)
    assert attempts(budget).failed("a", Failure.FINAL, 0.0, others=1) is None
    assert budget.left(0.0) == 1
    assert attempts(budget).failed("a", Failure.LOST, 0.0, others=1) == 0.0
    assert attempts(budget).failed("a", Failure.LOST, 0.0, others=1) is None


@given(st.integers(0, 100))
def test_once_all_have_failed_it_waits_longer_each_time(seed):
    policy = RetryPolicy(retries=10, backoff_s=0.05, backoff_max_s=0.5)
    request = Attempts(policy, RetryBudget(floor=99), 0.0, 1e9, random.Random(seed))
    for bound in (0.1, 0.2, 0.4, 0.5, 0.5):
        wait = request.failed("only", Failure.ERROR, 0.0, others=0)
        assert wait is not None and 0.0 <= wait <= bound


def test_never_first_on_a_replica_that_has_failed_it():
    loads = [ReplicaLoad(name) for name in "abc"]
    request = attempts(retries=9)
    assert request.among(loads) is loads
    request.failed("b", Failure.LOST, 0.0, others=2)
    assert [load.name for load in request.among(loads)] == ["a", "c"]
    request.failed("a", Failure.LOST, 0.0, others=1)
    request.failed("c", Failure.LOST, 0.0, others=0)
    assert [load.name for load in request.among(loads)] == ["a", "b"]  # not where it failed last
    assert request.among(loads[2:]) == loads[2:]  # unless there is nobody else
