"""Tenants' limits: over several workers as over one, and every visit ends once."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gateway.config_access import KeyConfig
from gateway.errors import Forbidden, LimitReached
from gateway.tally import LIVE, REQUESTS, Tally
from gateway.tenants import OTHERS, SHOWN, Tenants

DIGEST = ("0" * 64,)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def key(name="app", **limits) -> KeyConfig:
    return KeyConfig(name=name, key_sha256=DIGEST, **limits)


def workers(folder, *keys, count=2, clock=None):
    made = [Tenants(clock or Clock(), folder) for _ in range(count)]
    for each in made:
        each.apply(keys, count)
    return made


def admitted(tenants, name="app", tokens=0.0):
    try:
        return tenants[name].take("m", tokens)
    except LimitReached:
        return None


def test_requests_of_all_workers_count_together(tmp_path):
    clock = Clock()
    one, two = workers(tmp_path, key(requests_per_s=10.0, burst_s=1.0), clock=clock)
    taken = [admitted((one, two)[n % 2]) for n in range(20)]
    assert sum(visit is not None for visit in taken) == 10
    clock.now += 0.5
    assert sum(admitted(one) is not None for _ in range(20)) == 5
    with pytest.raises(LimitReached) as caught:
        two["app"].take("m")
    assert caught.value.retry_after == pytest.approx(0.1)


def test_concurrency_is_that_of_all_workers(tmp_path):
    one, two = workers(tmp_path, key(concurrency=3))
    visits = [admitted(one), admitted(two), admitted(one)]
    assert all(visits) and admitted(two) is None and admitted(one) is None
    visits[0].end()
    visits[0].end()
    assert admitted(two) is not None and admitted(one) is None


def test_tokens_are_settled_for_all_workers(tmp_path):
    one, two = workers(tmp_path, key(tokens_per_minute=60.0, burst_s=60.0))
    visit = admitted(one, tokens=50.0)
    assert admitted(two, tokens=20.0) is None
    visit.tokens = 5.0
    visit.end()
    assert admitted(two, tokens=50.0) is not None
    assert admitted(one, tokens=10.0) is None
    assert one["app"].tokens == 5.0


def test_a_worker_that_dies_holds_nothing(tmp_path):
    one, two = workers(tmp_path, key(concurrency=1))
    assert admitted(one) is not None and admitted(two) is None
    one._tally.close()  # as the kernel does
    (three,) = workers(tmp_path, key(concurrency=1), count=1)
    three.apply([key(concurrency=1)], 2)
    assert admitted(two) is not None and admitted(three) is None


def test_other_limits_count_what_is_in_flight(tmp_path):
    one, two = workers(tmp_path, key(concurrency=2), key("other", concurrency=1))
    visit = admitted(one)
    for tenants in (one, two):
        tenants.apply([key(concurrency=2)], 2)
    assert admitted(two) is not None and admitted(two) is None and admitted(one) is None
    visit.end()
    assert admitted(one) is not None


def test_alone_each_worker_keeps_to_its_part():
    tenants = Tenants(Clock())
    tenants.apply([key(concurrency=5)], 2)
    assert sum(admitted(tenants) is not None for _ in range(9)) == 3


def test_a_model_that_is_not_the_tenants_costs_it_nothing(tmp_path):
    (tenants,) = workers(tmp_path, key(models=("other",), requests_per_s=1.0), count=1)
    with pytest.raises(Forbidden, match="may not use model 'm'"):
        tenants["app"].take("m")
    assert tenants["app"].refused == {"model": 1}
    assert tenants["app"].take("other")


def test_rows_are_held_by_one_each_and_freed_with_their_holder(tmp_path):
    tallies = [Tally(tmp_path, ["a", "b"], 1) for _ in range(9)]
    with pytest.raises(OSError, match="all 9 rows"):
        Tally(tmp_path, ["b", "a"], 1)
    for at, tally in enumerate(tallies):
        tally.add("b", REQUESTS, at)
        tally.add("b", LIVE, 1)
    assert [tally.others("b", REQUESTS) for tally in tallies] == [36 - at for at in range(9)]
    assert tallies[0].others("a", REQUESTS) == 0.0
    tallies[4].close()
    again = Tally(tmp_path, ["a", "b"], 1)
    assert again.others("b", LIVE) == 8.0 and again.others("b", REQUESTS) == 32.0
    assert tallies[0].others("b", REQUESTS) == 36.0  # the row's past stays


class Shared(RuleBasedStateMachine):
    """However requests come and go over workers, what is in flight adds up and keeps the limit."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile
        from pathlib import Path

        self.folder = tempfile.TemporaryDirectory()
        self.workers = workers(Path(self.folder.name), key(concurrency=4), count=3)
        self.visits = []

    def teardown(self) -> None:
        for tenants in self.workers:
            tenants.apply([], 3)
        self.folder.cleanup()

    @rule(n=st.integers(0, 2))
    def take(self, n):
        visit = admitted(self.workers[n])
        assert (visit is not None) == (len(self.visits) < 4)
        if visit is not None:
            self.visits.append(visit)

    @rule(data=st.data(), twice=st.booleans())
    def end(self, data, twice):
        if self.visits:
            visit = data.draw(st.sampled_from(self.visits))
            self.visits.remove(visit)
            visit.end()
            if twice:
                visit.end()

    @rule()
    def reload(self):
        for tenants in self.workers:
            tenants.apply([key(concurrency=4)], 3)

    @invariant()
    def balanced(self):
        assert sum(tenants["app"].live for tenants in self.workers) == len(self.visits)


TestShared = Shared.TestCase


# ----------------------------------------------------------------------------------- very many keys


def many(count: int, **limits) -> Tenants:
    tenants = Tenants(Clock())
    tenants.apply([key(f"t{number}", **limits) for number in range(count)], 1)
    return tenants


def test_each_of_thousands_of_tenants_has_limits_of_its_own():
    tenants = many(5000, concurrency=1)
    assert all(admitted(tenants, f"t{number}") for number in range(5000))
    assert not any(admitted(tenants, f"t{number}") for number in range(0, 5000, 7))


def test_metrics_name_the_first_keys_and_count_the_others_together():
    tenants = many(SHOWN + 3, concurrency=1)
    for name in ("t0", f"t{SHOWN}", f"t{SHOWN + 2}", f"t{SHOWN + 2}"):
        admitted(tenants, name)
    by_name = {family[0]: dict(_flat(family)) for family in tenants.families()}
    requests = by_name["penstock_tenant_requests_total"]
    assert len(requests) == SHOWN + 1
    assert (requests["t0",], requests["t1",], requests[OTHERS,]) == (1, 0, 2)
    assert by_name["penstock_tenant_requests_live"][OTHERS,] == 2
    assert by_name["penstock_tenant_refused_total"] == {(OTHERS, "concurrency"): 1}


def _flat(family):
    return [(tuple(labels), value) for labels, value in family[4:]]


def test_limits_that_stay_are_not_made_anew_and_those_that_change_hold_at_once():
    tenants = Tenants(Clock())
    tenants.apply([key("a", concurrency=1), key("b", concurrency=1)], 1)
    assert admitted(tenants, "a") and admitted(tenants, "b")
    kept = tenants._limits["a"]
    tenants.apply([key("a", concurrency=1), key("b", concurrency=2)], 1)
    assert tenants._limits["a"] is kept
    assert admitted(tenants, "a") is None and admitted(tenants, "b")
    tenants.apply([key("a"), key("b", concurrency=2)], 1)
    assert admitted(tenants, "a")  # none any more
