"""Session routing: proportional, minimally disrupted, the same everywhere, and bounded."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.policy.bounds import LoadBound
from gateway.policy.load import ReplicaLoad
from gateway.policy.rendezvous import Rendezvous, SessionRouter, digest
from gateway.policy.routing import RoutingKey
from gateway.policy.slowstart import SlowStart

NAMES = st.lists(
    st.text("abcdef-0123", min_size=1, max_size=6), min_size=2, max_size=9, unique=True
)
FLEETS = NAMES.flatmap(
    lambda names: st.tuples(
        st.just(names),
        st.lists(st.floats(0.1, 10.0), min_size=len(names), max_size=len(names)),
    )
)


def homes(names: list[str], weights: list[float], keys: range) -> list[str]:
    ranking = Rendezvous(names, weights)
    return [names[ranking.ranked(f"session-{key}")[0]] for key in keys]


def pool(count: int, **options: object) -> list[ReplicaLoad]:
    return [ReplicaLoad(f"r{index}", **options) for index in range(count)]


def key(name: object) -> RoutingKey:
    return RoutingKey(session=str(name))


# ------------------------------------------------------------------------------------- the ranking


@given(FLEETS, st.data())
def test_removing_a_replica_moves_only_what_lived_there(fleet, data):
    names, weights = fleet
    gone = data.draw(st.integers(0, len(names) - 1))
    before = homes(names, weights, range(200))
    after = homes(
        names[:gone] + names[gone + 1 :], weights[:gone] + weights[gone + 1 :], range(200)
    )
    for was, now in zip(before, after, strict=True):
        assert now == was or was == names[gone]


@given(FLEETS, st.data())
def test_raising_a_weight_only_attracts_and_lowering_only_repels(fleet, data):
    names, weights = fleet
    place = data.draw(st.integers(0, len(names) - 1))
    raised = list(weights)
    raised[place] *= data.draw(st.floats(1.1, 5.0))
    low, high = homes(names, weights, range(200)), homes(names, raised, range(200))
    for with_low, with_high in zip(low, high, strict=True):
        assert with_high == with_low or with_high == names[place]


@given(FLEETS, st.randoms())
def test_the_order_of_the_list_does_not_matter(fleet, rng):
    pairs = list(zip(*fleet, strict=True))
    shuffled = pairs[:]
    rng.shuffle(shuffled)
    assert homes(*map(list, zip(*pairs, strict=True)), range(50)) == homes(
        *map(list, zip(*shuffled, strict=True)), range(50)
    )


@given(FLEETS)
def test_a_ranking_names_everybody_once(fleet):
    names, weights = fleet
    assert sorted(Rendezvous(names, weights).ranked("x")) == list(range(len(names)))


def test_each_is_home_to_its_weights_part():
    weights = [1.0, 2.0, 3.0, 0.5, 1.5]
    found = Counter(homes(list("abcde"), weights, range(40_000)))
    for name, weight in zip("abcde", weights, strict=True):
        expected = 40_000 * weight / sum(weights)
        assert abs(found[name] - expected) < 4.5 * expected**0.5, name


def test_second_choices_are_spread_like_first_ones():
    """What a lost replica's sessions do: they scatter over all others."""
    ranking = Rendezvous([f"r{n}" for n in range(8)], [1.0] * 8)
    pairs = Counter(tuple(ranking.ranked(f"k{n}")[:2]) for n in range(28_000))
    assert len(pairs) == 56
    assert sum((n - 500) ** 2 / 500 for n in pairs.values()) < 103  # chi², 55 degrees, p = 0.0001


def test_weight_zero_is_never_ranked():
    assert set(Rendezvous(["a", "b", "c"], [1.0, 0.0, 1.0]).ranked("x")) == {0, 2}


def test_moves_on_a_change_are_within_five_percent_of_ideal():
    eight = [f"r{n}" for n in range(8)]
    before = homes(eight, [1.0] * 8, range(40_000))
    after = homes([*eight, "r8"], [1.0] * 9, range(40_000))
    moved = sum(a != b for a, b in zip(before, after, strict=True))
    assert moved <= 1.05 * 40_000 / 9


def test_workers_and_restarts_agree():
    """Another process, with another hash seed, ranks alike; and the values never change."""
    code = (
        "from gateway.policy.rendezvous import Rendezvous, digest;"
        "print(Rendezvous(['a', 'b', 'c', 'd'], [1, 2, 1, 3]).ranked('séance'), digest('séance'))"
    )
    out = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    here = f"{Rendezvous(['a', 'b', 'c', 'd'], [1, 2, 1, 3]).ranked('séance')} {digest('séance')}\n"
    assert out == [here, here]
    # Values of a running fleet: a change of these moves every session there is.
    assert digest("penstock") == 0x4F2E34AD36CC8EF3
    assert Rendezvous(list("abcd"), [1, 2, 1, 3]).ranked("session-1") == [3, 1, 2, 0]
    assert digest("\ud800") != digest("\ud801")  # whatever a client sends has a digest


# -------------------------------------------------------------------------------------- the router


def test_a_session_stays_put_and_sessions_spread():
    loads, router = pool(8), SessionRouter(random.Random(1))
    first = {n: router.choose(loads, key(n), 0.0).name for n in range(400)}
    assert len(set(first.values())) == 8
    again = SessionRouter(random.Random(2))  # a restart, another worker
    assert {n: again.choose(loads, key(n), 9.0).name for n in range(400)} == first


def test_a_session_leaves_a_saturated_replica_for_the_same_second_and_returns():
    loads, router = pool(4), SessionRouter(random.Random(1))
    home = router.choose(loads, key("x"), 0.0)
    held = [home.take(1.0, 0.0) for _ in range(50)]
    second = router.choose(loads, key("x"), 0.0)
    assert second is not home
    assert SessionRouter(random.Random(9)).choose(loads, key("x"), 0.0) is second
    for lease in held:
        lease.release(1.0)
    assert router.choose(loads, key("x"), 1.0) is home


def test_one_against_none_never_moves_a_session():
    for name in range(100):
        loads, router = pool(8), SessionRouter(random.Random(1))
        home = router.choose(loads, key(name), 0.0)
        home.take(1.0, 0.0)
        assert router.choose(loads, key(name), 0.0) is home


@settings(max_examples=30)
@given(st.lists(st.integers(0, 5), min_size=20, max_size=120), st.integers(2, 8))
def test_no_replica_exceeds_its_bound(sessions, count):
    loads, router = pool(count), SessionRouter(random.Random(1))
    for session in sessions:
        load = router.choose(loads, key(session), 0.0)
        load.take(1.0, 0.0)
        total = sum(other.work for other in loads)
        assert load.work <= 1.25 * total / count + 2.0 + 1e-9


def test_a_drained_home_sends_its_sessions_to_their_second_choice_only():
    loads, router = pool(5), SessionRouter(random.Random(1))
    before = {n: router.choose(loads, key(n), 0.0) for n in range(300)}
    loads[2].drain(1.0)
    during = {n: router.choose(loads, key(n), 1.0) for n in range(300)}
    assert all(during[n] is before[n] for n in before if before[n] is not loads[2])
    loads[2].undrain(2.0)
    assert {n: router.choose(loads, key(n), 99.0) for n in range(300)} == before


def test_slow_start_lowers_the_bound_and_moves_no_home():
    loads = pool(4, slow_start=SlowStart(window_s=10.0))
    router = SessionRouter(random.Random(1))
    home = router.choose(loads, key("x"), 0.0)
    home.restart(0.0)
    assert router.choose(loads, key("x"), 0.0) is home
    for load in loads:
        for _ in range(4):
            load.take(1.0, 0.0)
    assert router.choose(loads, key("x"), 0.1) is not home
    assert router.choose(loads, key("x"), 10.0) is home


def test_the_memory_of_rankings_is_bounded_and_follows_the_fleet(monkeypatch):
    monkeypatch.setattr("gateway.policy.rendezvous._MEMO", 16)
    loads, router = pool(4), SessionRouter(random.Random(1))
    first = [router.choose(loads, key(n), 0.0).name for n in range(100)]
    assert len(router._memo) <= 16
    assert [router.choose(loads, key(n), 0.0).name for n in range(100)] == first
    loads[0].set_weight(0.0, 1.0)
    assert "r0" not in {router.choose(loads, key(n), 1.0).name for n in range(100)}


def test_when_all_are_past_their_bound_work_decides():
    loads = pool(2)
    router = SessionRouter(random.Random(1), LoadBound(factor=1.0, slack=0.0))
    loads[0].take(10.0, 0.0)
    loads[1].take(10.0, 0.0)
    loads[0].take(1.0, 0.0)
    chosen = {router.choose(loads, key(n), 0.0, cost=5.0).name for n in range(20)}
    assert chosen == {"r1"}


@pytest.mark.parametrize("options", [{"factor": 0.9}, {"slack": -1.0}])
def test_bad_bounds_are_refused(options):
    with pytest.raises(ValueError, match="factor must be at least 1"):
        LoadBound(**options)
