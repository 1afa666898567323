"""Doomed work is not begun, on the evidence of what was run lately."""

from __future__ import annotations

from backends.tensor.pace import Pace


def test_nothing_is_known_before_the_first_batch():
    assert Pace().least(5.0) == 0.0


def test_the_shortest_size_counts_and_is_smoothed():
    pace = Pace()
    for _ in range(50):
        pace.observe(8, 0.4, 1.0)
        pace.observe(1, 0.1, 1.0)
    assert 0.08 < pace.least(1.0) < 0.1
    for _ in range(50):
        pace.observe(1, 0.3, 1.0)
    assert 0.25 < pace.least(1.0) < 0.3


def test_old_evidence_is_not_believed():
    pace = Pace()
    pace.observe(4, 0.2, 10.0)
    assert pace.least(11.9) > 0
    assert pace.least(12.5) == 0
    pace.observe(4, 1.0, 20.0)
    assert pace.least(23.0) > 0  # ten batches, here


def test_a_new_version_starts_anew():
    pace = Pace()
    pace.observe(4, 0.2, 10.0)
    pace.reset()
    assert pace.least(10.0) == 0
