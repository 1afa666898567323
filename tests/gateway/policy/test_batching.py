"""The batcher, decision by decision."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import pytest

from gateway.policy.batching import Batcher, BatchingKnobs, Plan
from gateway.policy.service import ServiceCurve

SLO = 0.050


@dataclass(eq=False)
class Item:
    arrived: float = 0.0
    deadline: float = inf
    rows: int = 1
    priority: int = 0
    key: object = "k"


def items(count, *, arrived=0.0, budget=SLO, **rest):
    return [Item(arrived, arrived + budget, **rest) for _ in range(count)]


def linear(fixed=0.008, each=0.00025, largest=128):
    """A curve that has seen every size."""
    curve = ServiceCurve()
    for size in range(1, largest + 1):
        curve.observe(size, fixed + each * size)
        curve.observe(size, fixed + each * size)
    for _ in range(64):  # past the next rebuild
        curve.observe(1, fixed + each)
    return curve


def batcher(size=8, **knobs):
    return Batcher(BatchingKnobs(**{"max_batch_size": size, "overhead_s": 0.0, **knobs}))


def fill(queue, waiting, now=0.0):
    for item in waiting:
        assert queue.add(item, now) is None
    return waiting


def ask(queue, now=0.0, *, free=1, slots=1, curve=None, **rest) -> Plan:
    return queue.next(now, free=free, slots=slots, curve=curve or ServiceCurve(), **rest)


# -------------------------------------------------------------------------------- what is sent


def test_a_lone_request_is_sent_at_once():
    for slo in (None, SLO):
        queue = batcher(slo_s=slo)
        (item,) = fill(queue, items(1))
        plan = ask(queue, curve=linear(), slots=4, free=4)
        assert (plan.batch, plan.reason, plan.dropped, plan.wake) == ([item], "all", [], None)
        assert len(queue) == queue.rows == 0


def test_without_a_deadline_a_free_slot_takes_what_waits_up_to_the_limit():
    queue = batcher(8)
    waiting = fill(queue, items(19, budget=inf))
    plans = [ask(queue, slots=4, free=4, curve=linear()) for _ in range(4)]
    assert [p.batch for p in plans] == [waiting[:8], waiting[8:16], waiting[16:], []]
    assert [p.reason for p in plans] == ["full", "full", "all", "empty"]


def test_no_batch_is_bound_while_no_slot_is_free():
    queue = batcher()
    first = fill(queue, items(2))
    plan = ask(queue, free=0)
    assert (plan.batch, plan.reason, plan.wake) == ([], "busy", SLO)
    later = fill(queue, items(2), 0.001)
    assert ask(queue, 0.01).batch == first + later


def test_the_limit_counts_rows():
    queue = batcher(8)
    waiting = fill(queue, [Item(rows=3), Item(rows=4), Item(rows=2), Item(rows=8), Item(rows=1)])
    assert queue.rows == 18
    batches = [ask(queue).batch for _ in range(4)]
    assert batches == [waiting[:2], waiting[2:3], waiting[3:4], waiting[4:]]


def test_a_budget_of_cost_bounds_a_batch_beside_its_rows():
    queue = batcher(4, cost=lambda item: item.rows * 100, max_cost=1000)
    waiting = fill(queue, items(6, budget=inf))
    assert ask(queue).batch == waiting[:4]
    assert ask(queue).batch == waiting[4:]
    longer = batcher(64, cost=lambda item: 300, max_cost=1000)
    waiting = fill(longer, items(7, budget=inf))
    assert [len(ask(longer).batch) for _ in range(3)] == [3, 3, 1]
    assert len(longer) == longer.rows == 0


def test_earlier_deadlines_come_first_and_equal_ones_in_order_of_arrival():
    queue = batcher(2)
    a, b, c, d = Item(deadline=9.0), Item(deadline=5.0), Item(deadline=9.0), Item(deadline=5.0)
    fill(queue, [a, b, c, d])
    assert [ask(queue).batch for _ in range(2)] == [[b, d], [a, c]]


def test_a_batch_holds_one_key_the_one_whose_head_is_most_urgent():
    queue = batcher()
    late, soon, more = Item(deadline=3.0, key="x"), Item(deadline=2.0, key="y"), Item(deadline=4.0)
    more.key = "y"
    fill(queue, [late, soon, more])
    assert [ask(queue).batch for _ in range(2)] == [[soon, more], [late]]


def test_a_replica_gets_only_the_keys_that_it_accepts():
    queue = batcher()
    pinned, free = Item(deadline=1.0, key="v1"), Item(deadline=2.0, key=None)
    fill(queue, [pinned, free])
    assert ask(queue, accept=lambda key: key is None).batch == [free]
    plan = ask(queue, accept=lambda key: key is None)
    assert (plan.batch, plan.reason, plan.wake) == ([], "unaccepted", 1.0)
    assert ask(queue, accept=lambda key: True).batch == [pinned]


# ---------------------------------------------------------------------------- what is given up


def test_heads_that_would_spoil_the_batch_are_dropped_when_a_slot_frees():
    queue = batcher(128, slo_s=SLO)
    old, new = items(5), items(40, arrived=0.030)
    fill(queue, old)
    fill(queue, new, 0.030)
    # 45 take 19.25 ms, until 54.25 ms: too late for the old. Any batch that is in time for them
    # leaves the others behind.
    plan = ask(queue, 0.035, curve=linear())
    assert (plan.dropped, plan.batch) == (old, new)


def test_nothing_is_dropped_that_a_slightly_smaller_batch_can_meet():
    queue = batcher(128, slo_s=SLO)
    waiting = fill(queue, items(40))
    plan = ask(queue, 0.0335, curve=linear())  # 34 of them end at 50 ms
    assert plan.dropped == [] and plan.batch == waiting[: len(plan.batch)]
    assert 30 <= len(plan.batch) <= 34
    assert plan.reason == "sized"


def test_what_only_another_free_slot_can_meet_is_left_for_it():
    queue = batcher(128, slo_s=SLO, hold=False)
    old, new = items(5), items(100, arrived=0.030)
    fill(queue, old)
    fill(queue, new, 0.030)
    first = ask(queue, 0.035, free=2, slots=2, curve=linear())
    second = ask(queue, 0.035, free=1, slots=2, curve=linear())
    assert (first.batch, first.dropped) == (new, [])
    assert (second.batch, second.dropped) == (old, [])


def test_items_expire_on_time_though_every_slot_is_busy():
    queue = batcher()
    first, second = fill(queue, [Item(deadline=1.0), Item(deadline=2.0)])
    assert ask(queue, free=0).wake == 1.0
    plan = ask(queue, 1.0, free=0)
    assert (plan.dropped, plan.wake) == ([first], 2.0)
    assert ask(queue, 2.5, free=0).dropped == [second]
    assert len(queue) == 0


def test_an_item_without_a_deadline_is_never_dropped():
    queue = batcher(slo_s=SLO)
    (item,) = fill(queue, items(1, budget=inf))
    assert ask(queue, 1e6, free=0, curve=linear()).dropped == []
    assert ask(queue, 1e6, curve=linear()).batch == [item]


def test_steps_of_the_curve_decide_the_size():
    curve = ServiceCurve()
    for _ in range(3):
        for size in range(1, 129):
            curve.observe(size, 0.004 + 0.0003 * (1 << (size - 1).bit_length()))
    queue = batcher(128, slo_s=0.1)
    for step in range(4000):  # 2000 rows a second, which is worth 2 ms a row
        queue.arrivals.observe(step * 0.0005, 1)
    waiting = items(70, arrived=2.0, budget=0.1)
    fill(queue, waiting, 2.0)
    plan = ask(queue, 2.0, curve=curve)
    assert (plan.batch, plan.reason) == (waiting[:64], "sized")


def test_what_the_curve_calls_hopeless_is_tried_now_and_then():
    curve = ServiceCurve()
    curve.observe(1, 5.0)  # a warm-up; nothing could be met if it were true
    queue = batcher(8, slo_s=SLO)
    waiting = fill(queue, items(3))
    plan = ask(queue, curve=curve)
    assert (plan.batch, plan.reason, plan.dropped) == (waiting, "probe", [])
    again = fill(queue, items(3, arrived=0.01), 0.01)
    plan = ask(queue, 0.01, curve=curve)
    assert (plan.batch, plan.reason, plan.dropped) == ([], "late", again)
    curve.observe(3, 0.010)
    curve.observe(1, 0.008)
    waiting = fill(queue, items(3, arrived=0.02), 0.02)
    assert ask(queue, 0.02, curve=curve).batch == waiting


# -------------------------------------------------------------------------------- when it holds


def steady(queue, per_second, until=2.0):
    """The batcher has seen a stream of this rate."""
    step = 1.0 / per_second
    for i in range(int(until * per_second)):
        queue.arrivals.observe(i * step, 1)
    return until


def test_several_busy_slots_hold_for_a_batch_that_keeps_up():
    queue = batcher(128, slo_s=SLO)
    now = steady(queue, 10_000)  # 4 slots do 10,000/s from batches of 53 on, with room from 85
    fill(queue, items(20, arrived=now), now)
    plan = ask(queue, now, free=1, slots=4, curve=linear())
    assert (plan.batch, plan.reason) == ([], "hold")
    assert now < plan.wake < now + SLO - linear().mean(20)
    fill(queue, items(70, arrived=now + 0.004), now + 0.004)
    assert len(ask(queue, now + 0.004, free=1, slots=4, curve=linear()).batch) == 90


def test_holding_ends_while_the_first_item_can_still_be_met():
    queue, curve = batcher(128, slo_s=SLO), linear()
    now = steady(queue, 10_000)
    waiting = fill(queue, items(20, arrived=now), now)
    wake = ask(queue, now, free=1, slots=4, curve=curve).wake
    plan = ask(queue, wake, free=1, slots=4, curve=curve)
    assert (plan.batch, plan.dropped) == (waiting, [])
    assert wake + curve.mean(20) <= waiting[0].deadline


def test_under_overload_many_slots_do_not_give_up_heads_for_batches_that_cannot_be_gathered():
    queue, curve = batcher(16, slo_s=0.010), linear(0.002, 0.001, 16)
    now = steady(queue, 6_000)  # 6 come while 6 run in 8 ms, and none keep up
    first = items(2, arrived=now, budget=0.010)
    rest = items(8, arrived=now + 0.0012, budget=0.010)
    fill(queue, first, now)
    fill(queue, rest, now + 0.0012)
    plan = ask(queue, now + 0.0015, free=1, slots=8, curve=curve)
    assert (plan.batch, plan.dropped) == (first + rest[:4], [])  # not 7 of the rest, in 9 ms


@pytest.mark.parametrize(
    ("knobs", "slots", "rate"),
    [
        ({"slo_s": SLO}, 1, 2_000),  # one slot: waiting only wastes it
        ({"slo_s": SLO, "hold": False}, 4, 10_000),
        ({}, 4, 10_000),  # no deadline to weigh it against
        ({"slo_s": SLO}, 4, 100),  # low load: nobody would come
    ],
)
def test_nothing_is_held_where_holding_gains_nothing(knobs, slots, rate):
    queue = batcher(128, **knobs)
    now = steady(queue, rate)
    waiting = fill(queue, items(1, arrived=now), now)
    assert ask(queue, now, free=1, slots=slots, curve=linear()).batch == waiting


def test_nothing_is_held_before_the_curve_is_known_or_while_several_keys_wait():
    queue = batcher(128, slo_s=SLO)
    now = steady(queue, 10_000)
    waiting = fill(queue, items(1, arrived=now), now)
    assert ask(queue, now, free=1, slots=4).batch == waiting
    x, y = fill(queue, items(1, arrived=now, key="x") + items(1, arrived=now, key="y"), now)
    assert ask(queue, now, free=1, slots=4, curve=linear()).batch == [x]
    assert len(queue) == 1 and y.key == "y"


def test_a_replica_with_work_ahead_gets_its_batch_when_it_can_begin():
    queue = batcher(8, slo_s=SLO)
    waiting = fill(queue, items(2))
    plan = ask(queue, curve=linear(), ahead=0.020)
    assert (plan.batch, plan.reason) == ([], "busy") and 0.015 < plan.wake < 0.020
    assert ask(queue, plan.wake, curve=linear(), ahead=0.020 - plan.wake).batch == waiting
    # So does one without a usual deadline: bound early it would only be smaller, or be late.
    unhurried = batcher(8)
    waiting = fill(unhurried, items(2, budget=inf))
    assert not ask(unhurried, curve=linear(), ahead=0.020).batch
    assert ask(unhurried, curve=linear(), ahead=0.001).batch == waiting


# ------------------------------------------------------------------------------------- priorities


def test_higher_priority_goes_first_and_is_filled_up_with_lower():
    queue = batcher(4)
    low, high = items(3, priority=-1), items(3, priority=1)
    fill(queue, low + high)
    assert [ask(queue).batch for _ in range(2)] == [high + low[:1], low[1:]]


def test_lower_priority_is_not_added_where_it_would_make_higher_late():
    queue = batcher(128, slo_s=SLO)
    high = items(4, priority=1)
    low = items(100, arrived=0.035)
    fill(queue, high)
    fill(queue, low, 0.035)
    plan = ask(queue, 0.035, curve=linear())  # 28 end at 50 ms
    assert plan.batch[:4] == high and plan.dropped == []
    assert plan.batch[4:] == low[: len(plan.batch) - 4]
    assert 24 <= len(plan.batch) <= 28


def test_what_has_no_deadline_is_not_starved_by_higher_priority():
    queue = batcher(4, patience_s=1.0)
    (patient,) = fill(queue, items(1, budget=inf, priority=-5, key="x"))
    for turn in range(100):
        now = 1.0 + turn * 0.01
        fill(queue, items(4, arrived=now, priority=9, key="y"), now)
        if patient in ask(queue, now).batch:
            break
    assert turn < 10


def test_a_full_queue_refuses_unless_something_lower_can_make_room():
    queue = batcher(2, max_queue=2)
    low = items(2, budget=9.0)
    fill(queue, low)
    equal, higher = Item(deadline=1.0), Item(deadline=9.0, priority=1)
    refusal = queue.add(equal, 0.0)
    assert refusal is not None and refusal.reason == "queue_full"
    assert queue.add(higher, 0.0) is None
    plan = ask(queue)
    assert plan.batch == [higher, low[0]] and plan.dropped == [low[1]]


def test_what_higher_priorities_keep_out_until_it_is_late_is_refused():
    queue = batcher(8, slo_s=SLO)
    curve = linear(largest=8)  # 800 rows/s at most
    fill(queue, items(1))
    ask(queue, curve=curve)
    fill(queue, items(100, priority=1))
    refusal = queue.add(Item(0.0, SLO), 0.0)
    assert refusal is not None and refusal.reason == "too_late"
    assert queue.add(Item(0.0, inf), 0.0) is None
    assert queue.add(Item(0.0, 5.0), 0.0) is None


# ----------------------------------------------------------------------------- refusals, comings


def test_what_is_over_or_too_large_is_refused():
    queue = batcher(8)
    over, large = queue.add(Item(deadline=1.0), 1.0), queue.add(Item(rows=9), 1.0)
    assert over is not None and over.reason == "too_late"
    assert large is not None and (large.reason, large.retry_after) == ("too_large", None)


def test_being_behind_in_line_is_no_reason_for_refusal():
    queue = batcher(8, slo_s=SLO)
    curve = linear(largest=8)
    ask(queue, curve=curve)
    fill(queue, items(400))  # ten times what can be met
    assert queue.add(Item(0.040, 0.090), 0.040) is None
    plan = ask(queue, 0.0449, curve=curve)
    assert plan.batch[-1].deadline == 0.090 and len(plan.dropped) == 400


def test_before_anything_was_sent_a_full_queue_is_empty_after_the_aim_at_the_latest():
    queue = batcher(2, max_queue=2, slo_s=SLO)
    assert queue.drained_in(0.0) is None
    fill(queue, items(2))
    refusal = queue.add(Item(0.0, SLO), 0.0)
    assert refusal is not None and (refusal.reason, refusal.retry_after) == ("queue_full", SLO)
    assert len(ask(queue, SLO, free=0).dropped) == 2
    assert queue.add(Item(SLO, 2 * SLO), SLO) is None  # come when it was told to


def test_retry_after_is_what_draining_takes_at_the_present_pace():
    queue = batcher(8, max_queue=800)
    assert queue.drained_in(0.0) is None
    now = 0.0
    for _ in range(600):  # 800 rows a second leave
        now += 0.01
        fill(queue, items(8, budget=inf), now)
        ask(queue, now)
    fill(queue, items(800, budget=inf), now)
    refusal = queue.add(Item(now), now)
    assert refusal is not None and refusal.reason == "queue_full"
    assert refusal.retry_after == pytest.approx(1.0, rel=0.1)


def test_a_discarded_item_is_gone():
    queue = batcher(8)
    waiting = fill(queue, items(5, budget=9.0))
    assert queue.discard(waiting[2]) and not queue.discard(waiting[2])
    assert not queue.discard(Item(deadline=9.0)) and not queue.discard(Item(key="other"))
    assert len(queue) == queue.rows == 4
    assert ask(queue).batch == waiting[:2] + waiting[3:]
    assert not queue.discard(waiting[0])


def test_a_batch_whose_replica_died_goes_first_again():
    queue = batcher(4)
    waiting = fill(queue, items(6, budget=9.0))
    lost = ask(queue).batch
    queue.requeue(lost, 0.1)
    assert len(queue) == 6
    assert [ask(queue).batch for _ in range(2)] == [waiting[:4], waiting[4:]]


def test_what_is_too_late_when_it_comes_back_is_dropped():
    queue = batcher(4)
    waiting = fill(queue, items(2, budget=1.0))
    queue.requeue(ask(queue).batch, 1.5)
    plan = ask(queue, 1.5)
    assert (plan.batch, plan.dropped) == ([], waiting)


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"max_batch_size": 0}, "max_batch_size must be at least 1"),
        ({"max_queue": 3}, "max_queue must be at least max_batch_size"),
        ({"slo_s": 0.0}, "slo_s must be positive"),
        ({"patience_s": 0.0}, "patience_s must be positive"),
        ({"overhead_s": -1.0}, "overhead_s must not be negative"),
        ({"cost": lambda item: 1}, "cost and max_cost go together"),
        ({"cost": lambda item: 1, "max_cost": 0}, "max_cost must be at least 1"),
    ],
)
def test_knobs_are_checked(knobs, says):
    with pytest.raises(ValueError, match=says):
        BatchingKnobs(**{"max_batch_size": 8, **knobs})
