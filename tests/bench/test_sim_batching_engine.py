"""The simulators' clock: order, cancellation, independent seeds."""

from __future__ import annotations

from bench.sim.engine import Engine, stream


def test_events_run_in_order_of_time_then_of_setting():
    engine, seen = Engine(), []
    engine.at(2.0, seen.append, "late")
    engine.at(1.0, seen.append, "first")
    engine.at(1.0, seen.append, "second")
    engine.at(1.0, lambda: engine.after(0.5, seen.append, "nested"))
    engine.run()
    assert seen == ["first", "second", "nested", "late"]
    assert engine.now == 2.0


def test_a_cancelled_event_does_not_happen_and_a_past_one_happens_now():
    engine, seen = Engine(), []
    engine.at(1.0, seen.append, "cancelled").cancel()
    engine.at(3.0, lambda: engine.at(2.0, lambda: seen.append(engine.now)))
    engine.run()
    assert seen == [3.0]


def test_run_stops_at_its_bound_and_goes_on_from_there():
    engine, seen = Engine(), []
    engine.at(1.0, seen.append, 1)
    engine.at(5.0, seen.append, 5)
    engine.run(until=3.0)
    assert seen == [1] and engine.now == 3.0
    engine.run()
    assert seen == [1, 5]


def test_streams_depend_on_seed_and_name_only():
    assert stream(1, "a").random() == stream(1, "a").random()
    assert stream(1, "a").random() != stream(1, "b").random()
    assert stream(1, "a").random() != stream(2, "a").random()
