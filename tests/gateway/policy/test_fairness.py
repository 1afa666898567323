"""Fair sharing: the bound between tenants, priorities within one, what leaves a full queue."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gateway.policy.fairness import FairQueue

WEIGHTS = {"a": 1.0, "b": 2.0, "c": 0.5}


def drain(queue: FairQueue) -> list:
    found = []
    while (item := queue.pop()) is not None:
        found.append(item)
    return found


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.1, 10.0)), min_size=1, max_size=150))
def test_backlogged_tenants_differ_by_at_most_one_item_each(rows):
    queue = FairQueue(1000, WEIGHTS.__getitem__)
    left, largest = Counter(), defaultdict(float)
    for tenant, cost in rows:
        assert queue.push((tenant, cost), tenant, cost) is None
        left[tenant] += 1
        largest[tenant] = max(largest[tenant], cost)
    served: dict[str, float] = defaultdict(float)
    while (item := queue.pop()) is not None:
        tenant, cost = item
        served[tenant] += cost / WEIGHTS[tenant]
        left[tenant] -= 1
        busy = [t for t in left if left[t] > 0]
        for one in busy:
            for two in busy:
                bound = largest[one] / WEIGHTS[one] + largest[two] / WEIGHTS[two]
                assert abs(served[one] - served[two]) <= bound + 1e-9
    assert not +left


def test_weights_are_honoured_over_time():
    queue = FairQueue(10_000, WEIGHTS.__getitem__)
    for _ in range(700):
        for tenant in "abc":
            queue.push(tenant, tenant, 1.0)
    found = Counter(queue.pop() for _ in range(700))
    assert found == {"a": pytest.approx(200, abs=2), "b": pytest.approx(400, abs=2), "c": 100}


def test_cost_counts_and_not_the_number_of_requests():
    queue = FairQueue(1000)
    for _ in range(100):
        queue.push("big", "a", 10.0)
        queue.push("small", "b", 1.0)
    found = Counter(queue.pop() for _ in range(55))
    assert found["small"] == pytest.approx(50, abs=2)


def test_an_idle_tenant_saves_nothing_up():
    queue = FairQueue(1000)
    for _ in range(100):
        queue.push("a", "a", 1.0)
    for _ in range(50):
        queue.pop()
    for _ in range(50):
        queue.push("b", "b", 1.0)
    found = Counter(queue.pop() for _ in range(20))
    assert found["a"] == pytest.approx(10, abs=1)


def test_a_client_cannot_gain_on_others_by_its_priority():
    queue = FairQueue(1000)
    for n in range(20):
        queue.push(("a", n), "a", 1.0, priority=100)
        queue.push(("b", n), "b", 1.0)
    assert Counter(queue.pop()[0] for _ in range(20)) == {"a": 10, "b": 10}


def test_priority_reorders_a_tenants_own_requests_and_ties_keep_their_order():
    queue = FairQueue(1000)
    for n, priority in enumerate([0, 5, 0, -1, 5]):
        queue.push(n, "a", 1.0, priority=priority)
    assert drain(queue) == [1, 4, 0, 2, 3]


def test_what_turns_out_dearer_is_charged_afterwards():
    queue = FairQueue(1000)
    for _ in range(100):
        queue.push("a", "a", 1.0)
        queue.push("b", "b", 1.0)
    assert queue.pop() == "a"
    queue.settle("a", 9.0)
    assert [queue.pop() for _ in range(9)] == ["b"] * 9
    assert Counter(queue.pop() for _ in range(20)) == {"a": 10, "b": 10}
    queue.settle("a", -10.0)
    assert [queue.pop() for _ in range(9)] == ["a"] * 9


def test_when_full_the_heaviest_tenants_last_item_leaves():
    queue = FairQueue(4)
    for n in range(3):
        assert queue.push(("flood", n), "flood", 1.0) is None
    assert queue.push(("quiet", 0), "quiet", 1.0) is None
    assert queue.push(("quiet", 1), "quiet", 1.0) == ("flood", 2)
    assert queue.push(("flood", 3), "flood", 5.0) == ("flood", 3)
    assert len(queue) == 4


def test_what_cannot_be_served_keeps_its_place_and_is_not_charged():
    queue = FairQueue(100)
    for n in range(6):
        queue.push(("a", n), "a", 1.0)
        queue.push(("b", n), "b", 1.0)
    first, second = queue.take(), queue.take()
    assert {first.item, second.item} == {("a", 0), ("b", 0)}
    for waiting in (second, first):
        queue.put_back(waiting)
    assert (len(queue), queue.cost("a"), queue.total) == (12, 6.0, 12.0)
    found = [queue.pop() for _ in range(12)]
    for tenant in "ab":
        assert [item for item in found if item[0] == tenant] == [(tenant, n) for n in range(6)]
    assert Counter(item[0] for item in found[:4]) == {"a": 2, "b": 2}


def test_what_is_ahead_of_a_tenant_is_its_own_and_the_parts_of_others():
    queue = FairQueue(1000, {"flood": 1.0, "quiet": 1.0, "heavy": 3.0}.__getitem__)
    for n in range(100):
        queue.push(("flood", n), "flood", 1.0)
    assert queue.ahead("quiet", 1.0) == 1.0
    assert queue.ahead("flood", 1.0) == 100.0
    assert queue.ahead("heavy", 3.0) == 1.0
    queue.push(("quiet", 0), "quiet", 2.0)
    assert queue.ahead("quiet", 1.0) == 5.0


def test_many_may_leave_at_once():
    queue = FairQueue(20_000)
    items = [object() for _ in range(20_000)]
    for item in items:
        queue.push(item, "a", 1.0)
    for item in items[::2] + items[1:-1:2]:
        assert queue.discard(item)
    assert (len(queue), queue.pop(), queue.pop()) == (1, items[-1], None)


def test_a_cancelled_request_leaves_without_charge():
    queue = FairQueue(10)
    items = [object() for _ in range(3)]
    for item in items:
        queue.push(item, "a", 2.0)
    assert queue.discard(items[1]) and not queue.discard(items[1])
    assert not queue.discard(object())
    assert (len(queue), queue.cost("a")) == (2, 4.0)
    assert drain(queue) == [items[0], items[2]]
    assert (len(queue), queue.cost("a"), queue.pop()) == (0, 0.0, None)


def test_tenants_beyond_the_table_share_one_turn():
    queue = FairQueue(1000, max_tenants=3)
    for n in range(50):
        for tenant in ("a", "b", *(f"x{n}" for n in range(10))):
            queue.push(tenant, tenant, 1.0)
    assert len(queue._tenants) <= 4
    found = Counter(queue.pop() for _ in range(90))
    assert found["a"] == pytest.approx(22, abs=3) and found["b"] == pytest.approx(22, abs=3)
    cancelled = object()
    queue.push(cancelled, "x99", 1.0)
    assert queue.discard(cancelled)


def test_tenants_of_long_ago_are_forgotten():
    queue = FairQueue(10, max_tenants=8)
    for n in range(500):
        queue.push(n, f"t{n}", 1.0)
        assert queue.pop() == n
    assert len(queue._tenants) <= 9 and len(queue._turns) <= 200


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf")])
def test_weights_must_be_positive(weight):
    with pytest.raises(ValueError, match="weight of tenant 'a'"):
        FairQueue(4, lambda tenant: weight).push(1, "a", 1.0)


def test_costs_must_be_numbers():
    with pytest.raises(ValueError, match="cost"):
        FairQueue(4).push(1, "a", float("nan"))


class Queue(RuleBasedStateMachine):
    """Everything that goes in comes out exactly once; the bound holds; nobody is starved."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = FairQueue(12, WEIGHTS.__getitem__, max_tenants=8)
        self.inside: dict[int, str] = {}
        self.count = 0

    @rule(tenant=st.sampled_from("abc"), cost=st.floats(0.0, 5.0), priority=st.integers(-2, 2))
    def push(self, tenant: str, cost: float, priority: int) -> None:
        self.count += 1
        self.inside[self.count] = tenant
        out = self.queue.push(self.count, tenant, cost, priority=priority)
        assert (out is not None) == (len(self.inside) > 12)
        if out is not None:
            del self.inside[out]

    @rule()
    def pop(self) -> None:
        item = self.queue.pop()
        assert (item is None) == (not self.inside)
        if item is not None:
            del self.inside[item]

    @rule()
    def take_and_put_back(self) -> None:
        waiting = self.queue.take()
        assert (waiting is None) == (not self.inside)
        if waiting is not None:
            assert waiting.item in self.inside
            self.queue.put_back(waiting)

    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        if self.inside:
            item = data.draw(st.sampled_from(sorted(self.inside)))
            assert self.queue.discard(item)
            del self.inside[item]

    @rule(tenant=st.sampled_from("abc"), difference=st.floats(-5.0, 5.0))
    def settle(self, tenant: str, difference: float) -> None:
        self.queue.settle(tenant, difference)

    @invariant()
    def counts_agree(self) -> None:
        assert len(self.queue) == len(self.inside) <= 12
        for tenant in "abc":
            waits = any(owner == tenant for owner in self.inside.values())
            assert self.queue.cost(tenant) >= 0.0
            assert waits or self.queue.cost(tenant) == 0.0


TestQueue = Queue.TestCase
