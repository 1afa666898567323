"""Virtual token counters: who got least goes first, and idleness saves nothing up."""

from __future__ import annotations

import numpy as np

from backends.llm.engine.fairness import OUTPUT_WEIGHT, Fairness


def test_one_that_comes_late_starts_where_the_least_of_the_others_is() -> None:
    fairness = Fairness()
    a, b = fairness.enter("a"), fairness.enter("b")
    fairness.charge_prompt(a, 100)
    fairness.charge_outputs(np.array([a, b, b]))
    c = fairness.enter("c")
    assert fairness.counters[a] == 100 + OUTPUT_WEIGHT
    assert fairness.counters[c] == fairness.counters[b] == 2 * OUTPUT_WEIGHT


def test_leaving_and_coming_back_gains_nothing() -> None:
    fairness = Fairness()
    a = fairness.enter("a")
    fairness.enter("b")
    fairness.charge_prompt(a, 100)
    fairness.leave(a)
    assert fairness.counters[fairness.enter("a")] == 100
    assert fairness.tenants == 2


def test_a_tenant_keeps_its_index_while_any_of_its_work_is_there() -> None:
    fairness = Fairness()
    names = [f"t{n}" for n in range(40)]
    indices = [fairness.enter(name) for name in names]
    assert len(set(indices)) == 40
    assert [fairness.enter(name) for name in names] == indices
    for index in indices:
        fairness.leave(index)
    assert fairness.tenants == 40
    for index in indices:
        fairness.leave(index)
    assert fairness.tenants == 0
