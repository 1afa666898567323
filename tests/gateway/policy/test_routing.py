"""The stateless routers: who is chosen, in what proportion, and what all of them must respect."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.load import ReplicaLoad
from gateway.policy.routing import NO_KEY, ROUTERS, RoutingKey, make_router
from gateway.policy.slowstart import SlowStart

KEY = RoutingKey(session="s", prefix=(1, 2, 3))


def pool(*weights: float) -> list[ReplicaLoad]:
    return [ReplicaLoad(f"r{index}", weight) for index, weight in enumerate(weights)]


def counts(name: str, loads: list[ReplicaLoad], times: int, key: RoutingKey = NO_KEY) -> Counter:
    """How often each is chosen while nothing is held."""
    router = make_router(name, random.Random(7))
    found: Counter[str] = Counter()
    for _ in range(times):
        chosen = router.choose(loads, key, 0.0)
        assert chosen is not None
        found[chosen.name] += 1
    return found


@pytest.mark.parametrize("name", ROUTERS)
class TestEveryRouter:
    def test_nobody_to_choose(self, name):
        router = make_router(name, random.Random(1))
        assert router.choose([], KEY, 0.0) is None
        drained = pool(1.0, 1.0)
        for load in drained:
            load.drain(0.0)
        assert router.choose(drained, KEY, 0.0) is None
        assert router.choose(pool(0.0), KEY, 0.0) is None

    def test_drained_and_weightless_replicas_get_nothing(self, name):
        loads = pool(1.0, 0.0, 1.0)
        loads[2].drain(0.0)
        assert set(counts(name, loads, 50, KEY)) == {"r0"}
        loads[2].undrain(0.0)
        loads[0].drain(0.0)
        assert set(counts(name, loads, 50, KEY)) == {"r2"}

    def test_it_moves_no_counter(self, name):
        loads = pool(1.0, 2.0)
        counts(name, loads, 20, KEY)
        assert all((load.in_flight, load.work) == (0, 0.0) for load in loads)

    def test_a_weight_changed_at_run_time_counts_at_once(self, name):
        loads = pool(1.0, 1.0)
        router = make_router(name, random.Random(1))
        for _ in range(20):
            router.choose(loads, KEY, 0.0)
        loads[0].set_weight(0.0, 1.0)
        assert all(router.choose(loads, KEY, 1.0) is loads[1] for _ in range(20))

    def test_it_is_deterministic_in_its_generator(self, name):
        def run() -> list[str]:
            router, loads, names = make_router(name, random.Random(3)), pool(1, 2, 3, 1), []
            for step in range(60):
                load = router.choose(loads, NO_KEY, float(step), cost=1.0 + step % 3)
                lease = load.take(1.0, float(step))
                router.sent(lease, NO_KEY, float(step))
                names.append(load.name)
                if step % 2:
                    lease.release(step + 0.5)
                    router.ended(lease, NO_KEY, step + 0.5, ok=True)
            return names

        assert run() == run()


def test_unknown_names_are_refused_with_those_that_exist():
    with pytest.raises(ValueError, match=r"wlc.*'quickest'"):
        make_router("quickest")


@given(
    st.lists(st.tuples(st.floats(0.1, 10.0), st.floats(0.0, 100.0)), min_size=1, max_size=10),
    st.floats(0.0, 10.0),
)
def test_wlc_minimises_work_with_the_request_over_share(rows, cost):
    loads = pool(*(weight for weight, _ in rows))
    for load, (_, work) in zip(loads, rows, strict=True):
        load.take(work, 0.0)
    chosen = make_router("wlc", random.Random(0)).choose(loads, NO_KEY, 0.0, cost=cost)
    assert (chosen.work + cost) / chosen.share == min((x.work + cost) / x.share for x in loads)


def test_wlc_breaks_ties_evenly():
    found = counts("wlc", pool(1, 1, 1, 1), 4000)
    assert all(850 < n < 1150 for n in found.values()) and len(found) == 4


def test_wlc_counts_the_request_itself_so_the_fastest_idle_one_gets_it():
    assert set(counts("wlc", pool(1, 4, 2), 20)) == {"r1"}


def test_wlc_holds_a_new_replica_back():
    loads = pool(1.0, 1.0)
    fresh = ReplicaLoad("fresh", slow_start=SlowStart(window_s=10.0, floor=0.1))
    fresh.restart(0.0)
    router = make_router("wlc", random.Random(0))
    for load in loads:
        load.take(5.0, 0.0)
    assert router.choose([*loads, fresh], NO_KEY, 1.0) is not fresh  # (5+1)/1 against 1/0.1
    assert router.choose([*loads, fresh], NO_KEY, 2.0) is fresh  # against 1/0.2


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_round_robin_gives_each_its_weight_per_round_and_spreads_it(weights):
    loads, router = pool(*weights), make_router("wrr", random.Random(5))
    turns = [router.choose(loads, NO_KEY, 0.0).name for _ in range(10 * sum(weights))]
    found = Counter(turns)
    for load in loads:
        assert abs(found[load.name] - 10 * load.weight) <= 1
    if len(set(weights)) == 1:
        for start in range(0, len(turns) - len(loads), 1):
            assert len(set(turns[start : start + len(loads)])) == len(loads)


def test_round_robin_forgets_replicas_that_are_gone():
    router = make_router("wrr", random.Random(5))
    for generation in range(200):
        router.choose([ReplicaLoad(f"r{generation}-{n}") for n in range(3)], NO_KEY, 0.0)
    assert len(router._credit) <= 3 * 2 + 16 + 3


def test_random_is_proportional_to_weight():
    found = counts("random", pool(1, 2, 5), 8000)
    assert found["r0"] == pytest.approx(1000, rel=0.15)
    assert found["r2"] == pytest.approx(5000, rel=0.05)


def test_p2c_takes_the_less_loaded_of_two():
    loads = pool(1, 1)
    loads[0].take(3.0, 0.0)
    assert set(counts("p2c", loads, 50)) == {"r1"}
    three = pool(1, 1, 1)
    three[0].take(9.0, 0.0)
    assert "r0" not in counts("p2c", three, 300)  # it loses against any other
    assert len(counts("p2c", pool(1, 1, 1), 300)) == 3


def test_least_connections_ignores_weight_and_work():
    loads = pool(1, 100)
    loads[1].take(0.001, 0.0)
    loads[0].take(50.0, 0.0).reprice(1e6)
    assert len(counts("least-connections", loads, 100)) == 2
    loads[1].take(0.001, 0.0)
    assert set(counts("least-connections", loads, 50)) == {"r0"}


def test_sessionless_requests_of_affinity_routers_go_where_work_is_least():
    for name in ("session", "prefix"):
        loads = pool(1, 1)
        loads[0].take(1.0, 0.0)
        assert set(counts(name, loads, 20)) == {"r1"}


def test_least_work_weighs_what_a_replica_is_spared_against_the_wait_for_it():
    router = make_router("wlc", random.Random(3))
    loads = pool(1.0, 1.0)
    key = RoutingKey(spared={"r1": 80.0})
    assert router.choose(loads, key, 0.0, cost=100.0) is loads[1]
    loads[1].take(79.0, 0.0)
    assert router.choose(loads, key, 0.0, cost=100.0) is loads[1]
    loads[1].take(2.0, 0.0)
    assert router.choose(loads, key, 0.0, cost=100.0) is loads[0]
