from __future__ import annotations

from bench.series import MeasureFailed, Series, interleave


def test_repetitions_take_turns():
    order = []
    series = Series("m", "u", higher_is_better=True)

    def measure(name, repetition):
        order.append((name, repetition))
        return len(order)

    interleave(series, ["a", "b"], 2, measure)
    assert order == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert series.values == {"a": [1, 3], "b": [2, 4]}
    assert (series.median("a"), series.spread("a")) == (2, 1)


def test_who_fails_once_is_out_and_has_no_figure():
    series = Series("m", "u", higher_is_better=True)

    def measure(name, repetition):
        if name == "b" and repetition == 1:
            raise MeasureFailed("3 of 9 requests failed")
        return 1.0

    interleave(series, ["a", "b"], 3, measure)
    assert series.values == {"a": [1, 1, 1]}
    assert series.figure("b") == "unavailable: 3 of 9 requests failed"
    assert series.figure("c").startswith("unavailable")
