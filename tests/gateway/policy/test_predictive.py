"""Routing by predicted completion: what it learns, when it trusts it, and that it forgets."""

from __future__ import annotations

import random
from collections import Counter
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.load import ReplicaLoad
from gateway.policy.predictive import Predictive
from gateway.policy.regression import Features, Shape
from gateway.policy.routing import NO_KEY, RoutingKey
from gateway.policy.slowstart import SlowStart


class World:
    """Replicas that serve one request at a time per slot, in order, in exactly `seconds` × cost."""

    def __init__(self, loads: list[ReplicaLoad], seconds: dict[str, float]) -> None:
        self.loads, self.seconds = loads, seconds
        self.router, self.now = Predictive(random.Random(1)), 0.0
        self.free = {load.name: [0.0] * load.slots for load in loads}
        self.running: list[tuple[float, int, object, RoutingKey]] = []
        self.count = 0

    def request(self, gap: float, cost: float = 1.0, key: RoutingKey = NO_KEY) -> str:
        self.pass_time(gap)
        load = self.router.choose(self.loads, key, self.now, cost=cost)
        assert load is not None
        slot = min(range(load.slots), key=self.free[load.name].__getitem__)
        start = max(self.now, self.free[load.name][slot])
        end = self.free[load.name][slot] = start + self.time(load, cost, key)
        lease = load.take(cost, self.now)
        self.router.sent(lease, key, self.now)
        self.count += 1
        self.running.append((end, self.count, lease, key))
        return load.name

    def time(self, load: ReplicaLoad, cost: float, key: RoutingKey) -> float:
        return self.seconds[load.name] * cost

    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        self.running.sort(key=lambda row: row[:2])
        while self.running and self.running[0][0] <= until:
            self.now, _, lease, key = self.running.pop(0)
            lease.release(self.now)
            self.router.ended(lease, key, self.now, ok=True)
        self.now = until


def pool(count: int, slots: int = 1) -> list[ReplicaLoad]:
    return [ReplicaLoad(f"r{index}", slots=slots) for index in range(count)]


def test_until_it_knows_enough_it_routes_by_least_work():
    router, loads = Predictive(random.Random(1)), pool(3)
    loads[0].take(2.0, 0.0)
    loads[2].take(1.0, 0.0)
    assert not router.sure
    assert router.choose(loads, NO_KEY, 0.0) is loads[1]


def test_it_learns_who_is_fast_without_weights():
    world = World(pool(3), {"r0": 0.01, "r1": 0.01, "r2": 0.04})
    for _ in range(300):
        world.request(0.012)
    assert world.router.sure
    found = Counter(world.request(0.02) for _ in range(200))
    assert found["r2"] <= 2


def test_it_counts_the_wait_behind_what_it_has_sent():
    """A four times slower idle replica is better than a fast one with many requests waiting."""
    world = World(pool(3), {"r0": 0.01, "r1": 0.01, "r2": 0.04})
    for _ in range(400):
        world.request(0.0048)
    world.pass_time(1.0)
    burst = [world.request(0.0) for _ in range(14)]
    assert "r2" not in burst[:3]
    assert 1 <= burst.count("r2") <= 4


def test_it_leaves_a_replica_that_slows_down_and_comes_back_when_it_recovers():
    world = World(pool(4), dict.fromkeys(("r0", "r1", "r2", "r3"), 0.01))
    for _ in range(400):
        world.request(0.004)
    world.seconds["r1"] = 0.1
    for _ in range(200):
        world.request(0.004)
    slow = Counter(world.request(0.004) for _ in range(300))
    assert slow["r1"] < 15
    world.seconds["r1"] = 0.01
    for _ in range(8000):  # half a minute: doubt grows until it is tried again
        world.request(0.004)
    healed = Counter(world.request(0.004) for _ in range(400))
    assert healed["r1"] > 50


def test_a_replica_that_hangs_is_left_before_anything_has_timed_out():
    world = World(pool(3), dict.fromkeys(("r0", "r1", "r2"), 0.01))
    for _ in range(200):
        world.request(0.004)
    world.seconds["r1"] = 1e6
    found = Counter(world.request(0.004) for _ in range(2000))
    assert found["r1"] <= 5


def test_a_free_slot_beside_a_giant_is_a_free_slot():
    world = World(pool(2, slots=2), {"r0": 0.01, "r1": 0.01})
    for _ in range(200):
        world.request(0.006)
    world.pass_time(1.0)
    giant = world.request(0.0, cost=1000.0)
    other = "r1" if giant == "r0" else "r0"
    for load in world.loads:
        if load.name == other:
            load.take(1.0, world.now)
            load.take(1.0, world.now)
    assert world.request(0.0) == giant


def test_it_learns_what_tokens_cost():
    world = World(pool(2), {"r0": 0.01, "r1": 0.01})
    world.time = lambda load, cost, key: 0.001 + 0.0001 * key.tokens_out  # type: ignore[method-assign]
    rng = random.Random(3)
    for _ in range(3000):
        key = RoutingKey(tokens_in=rng.randrange(100), tokens_out=float(rng.randrange(1, 400)))
        world.request(0.02, key=key)
    shape = world.router._shape
    short = shape.value(Features(1.0, 1.0, 0.0, 50.0, 10.0))
    long = shape.value(Features(1.0, 1.0, 0.0, 50.0, 390.0))
    assert long / short == pytest.approx(0.040 / 0.002, rel=0.4)


def test_weights_that_differ_are_a_promise_and_a_canary_stays_small():
    loads = [ReplicaLoad("r0"), ReplicaLoad("r1"), ReplicaLoad("canary", weight=0.05)]
    world = World(loads, dict.fromkeys(("r0", "r1", "canary"), 0.01))
    found = Counter(world.request(0.005) for _ in range(1500))
    assert found["canary"] < 150


def test_a_weight_lowered_at_run_time_takes_traffic_away_at_once():
    world = World(pool(3), dict.fromkeys(("r0", "r1", "r2"), 0.01))
    before = Counter(world.request(0.005) for _ in range(600))
    assert before["r1"] > 150
    world.loads[1].set_weight(0.05, world.now)
    after = Counter(world.request(0.005) for _ in range(600))
    assert after["r1"] < 60


def test_a_new_replica_has_one_request_at_a_time_until_it_is_known():
    loads = pool(3)
    fresh = ReplicaLoad("fresh", slots=4, slow_start=SlowStart(window_s=10.0))
    world = World([*loads, fresh], dict.fromkeys(("r0", "r1", "r2", "fresh"), 0.01))
    for _ in range(200):
        world.request(0.006)
    fresh.restart(world.now)
    world.pass_time(0.5)
    burst = Counter(world.request(0.0) for _ in range(9))
    assert burst["fresh"] == 1


def test_useless_predictions_are_not_used():
    """Times without any order: it notices, and routes by least work."""
    world = World(pool(2), {"r0": 0.01, "r1": 0.01})
    rng = random.Random(5)
    world.time = lambda load, cost, key: 10.0 ** rng.uniform(-9.0, 0.0)  # type: ignore[method-assign]
    for _ in range(500):
        world.request(0.5)
    assert not world.router.sure


def test_more_slots_than_declared_are_found_out():
    """A replica said to have one slot that serves many at once makes nobody wait."""
    world = World(pool(1), {"r0": 0.01})
    world.free["r0"] = [0.0]
    rng = random.Random(2)
    router, load, now = world.router, world.loads[0], 0.0
    for _ in range(300):
        leases = [load.take(1.0, now) for _ in range(4)]
        for lease in leases:
            router.sent(lease, NO_KEY, now)
        now += 0.01
        rng.shuffle(leases)
        for lease in leases:
            lease.release(now)
            router.ended(lease, NO_KEY, now, ok=True)
    assert router._replicas["r0"].slots >= 4
    for _ in range(4000):  # and a chance finding is forgotten
        lease = load.take(1.0, now)
        router.sent(lease, NO_KEY, now)
        now += 0.01
        lease.release(now)
        router.ended(lease, NO_KEY, now, ok=True)
    assert router._replicas["r0"].slots == 1


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["send", "send", "end", "end", "again", "renew"]),
        st.sampled_from([0.0, 0.001, 0.5, 100.0]),  # seconds that pass first
        st.sampled_from([0.0, 5e-324, 0.3, 1.0, 1e200]),  # cost
        st.integers(0, 20),
        st.booleans(),
    ),
    max_size=120,
)


@given(STEPS)
def test_any_order_of_events_is_survived(steps):
    """Renewals, unknown leases, failures, repeats: memory stays bounded, choices stay valid."""
    loads, router, now = pool(3, slots=2), Predictive(random.Random(1)), 0.0
    held = []
    for action, seconds, cost, which, ok in steps:
        now += seconds
        if action == "send":
            load = router.choose(loads, NO_KEY, now, cost=cost)
            assert load in loads
            lease = load.take(cost, now)
            router.sent(lease, NO_KEY, now)
            held.append(lease)
        elif action == "renew":
            loads[which % 3].renew(now)
        elif held:
            lease = held[which % len(held)]
            lease.release(now)
            router.ended(lease, NO_KEY, now, ok=ok)
            if action == "end":
                held.remove(lease)
    for lease in held:
        lease.release(now)
        router.ended(lease, NO_KEY, now, ok=True)
    assert all(not r.running and not r.queued for r in router._replicas.values())
    assert all(0.0 < r.seconds < inf for r in router._replicas.values())


# ----------------------------------------------------------------------------------- the regression


def test_the_shape_is_found_and_keeps_its_scale():
    shape, rng = Shape(), random.Random(1)
    for _ in range(2000):
        cost, batch = rng.uniform(1.0, 10.0), rng.uniform(0.0, 5.0)
        features = Features(1.0, cost, cost * batch, 0.0, 0.0)
        shape.observe(features, 3.0 + cost + 0.2 * cost * batch)
    one = shape.value(Features(1.0, 2.0, 0.0, 0.0, 0.0))
    two = shape.value(Features(1.0, 8.0, 8.0 * 4.0, 0.0, 0.0))
    assert two / one == pytest.approx((3.0 + 8.0 + 6.4) / 5.0, rel=0.15)
    assert all(value >= 0.0 for value in shape.coefficients)
    assert shape.coefficients[3:] == (0.0, 0.0)


@given(st.lists(st.floats(1e-6, 1e6), min_size=20, max_size=100))
def test_the_shape_stays_finite_on_anything(values):
    shape = Shape()
    for value in values:
        shape.observe(Features(1.0, 1.0, 0.0, value, 0.0), value)
    assert all(0.0 <= c < inf for c in shape.coefficients)
