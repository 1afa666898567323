"""Service curves: what they learn, what they forget, and that they never fall."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.service import ServiceCurve, isotonic


def taught(truth, sizes, *, noise=0.0, seed=1):
    rng, curve = random.Random(seed), ServiceCurve()
    for size in sizes:
        curve.observe(size, truth(size) * rng.lognormvariate(0.0, noise))
    return curve


def linear(size):
    return 0.008 + 0.00025 * size


def stairs(size):
    return 0.008 + 0.00025 * (1 << (size - 1).bit_length())


def test_before_the_first_observation_nothing_is_known():
    curve = ServiceCurve()
    assert not curve.known
    assert curve.mean(1) == curve.upper(5000) == 0.0
    curve.observe(4, 0.01)
    assert curve.known and curve.mean(4) == pytest.approx(0.01)


def test_one_observation_tells_something_about_every_size():
    curve = ServiceCurve()
    curve.observe(8, 0.012)
    assert 0.0 < curve.mean(1) < curve.mean(8) < curve.mean(64) < 0.1


def test_a_line_is_learned_and_filled_in_between_and_beyond():
    # Sizes come in no order, as they do: those between known ones tell the shape.
    curve = taught(linear, [1, 64, 32, 16, 48, 8, 24, 40, 56, 4, 12, 20, 28, 36, 44, 52] * 20)
    for size in (1, 6, 10, 30, 45, 64):
        assert curve.mean(size) == pytest.approx(linear(size), rel=0.03)
    assert curve.mean(128) == pytest.approx(linear(128), rel=0.15)
    assert curve.mean(5000) == pytest.approx(linear(5000), rel=0.15)  # past the table


def test_a_staircase_is_learned_with_its_edges():
    rng = random.Random(2)
    curve = taught(stairs, [rng.randint(1, 128) for _ in range(2000)])
    for edge in (8, 16, 32, 64):
        assert curve.mean(edge) == pytest.approx(stairs(edge), rel=0.02)
        assert curve.mean(edge + 1) == pytest.approx(stairs(edge + 1), rel=0.02)


def test_sizes_that_nobody_tried_are_hoped_to_be_cheap_but_not_believed_to_be():
    curve = taught(stairs, [20, 24, 40, 48] * 3)
    means, hopes = curve.means(1, 100), curve.hopes(1, 100)
    assert hopes[32] == pytest.approx(stairs(24)) and means[32] > 1.1 * stairs(24)
    assert hopes[40] == pytest.approx(means[40])  # tried
    assert hopes[70] == pytest.approx(stairs(48)) and means[70] > 1.1 * stairs(48)
    assert all(hope <= mean + 1e-12 for hope, mean in zip(hopes, means, strict=True))
    assert all(a <= b + 1e-12 for a, b in pairwise(hopes))
    assert curve.hopes(2, 50) == pytest.approx(hopes[::2])


def test_below_a_tried_size_the_slope_above_it_is_hoped_to_have_begun():
    curve = taught(lambda size: 0.006 + 0.0002 * max(size - 32, 0), [1, 20, 40, 41, 42] * 20)
    assert curve.mean(39) == pytest.approx(0.00752, rel=0.01)  # on the line from 20 to 40
    assert curve.hopes(1, 60)[39] == pytest.approx(0.0074, rel=0.002)  # what it really takes


def test_noise_is_averaged_and_tells_the_upper_quantile():
    rng = random.Random(3)
    sizes = [rng.randint(1, 64) for _ in range(4000)]
    curve = taught(linear, sizes, noise=0.1)
    for size in (1, 16, 32, 64):
        assert curve.mean(size) == pytest.approx(linear(size), rel=0.06)
        assert curve.upper(size) / curve.mean(size) == pytest.approx(1.16, abs=0.05)
    late = sum(linear(s) * rng.lognormvariate(0.0, 0.1) > curve.upper(s) for s in sizes)
    assert 0.02 < late / len(sizes) < 0.10


def test_without_noise_upper_is_the_mean():
    curve = taught(linear, list(range(1, 65)) * 4)
    assert curve.upper(32) == pytest.approx(curve.mean(32))
    assert curve.deviation == pytest.approx(0.0, abs=1e-6)


def test_a_warm_up_is_forgotten_at_the_next_observation():
    curve = ServiceCurve()
    curve.observe(1, 5.0)
    curve.observe(1, 0.01)
    assert curve.mean(1) == pytest.approx(0.01)


def test_a_stall_hardly_moves_a_settled_curve():
    curve = taught(linear, [16] * 100)
    curve.observe(16, 3.0)
    assert curve.mean(16) == pytest.approx(linear(16), rel=0.1)
    assert curve.upper(16) < 1.3 * linear(16)


@pytest.mark.parametrize("factor", [0.4, 2.5])
def test_a_lasting_change_is_followed_within_a_few_observations(factor):
    curve = taught(linear, [16] * 100)
    for _ in range(8):
        curve.observe(16, factor * linear(16))
    assert curve.mean(16) == pytest.approx(factor * linear(16), rel=0.1)


def test_a_size_that_is_never_seen_again_is_forgotten():
    curve = taught(linear, [8, 16, 24, 32] * 20)
    curve.observe(40, 1.0)
    for _ in range(600):
        for size in (8, 16, 24, 32):
            curve.observe(size, linear(size))
    assert curve.mean(40) < 2 * linear(40)


def test_a_replicas_nonsense_breaks_nothing():
    curve = ServiceCurve()
    for size, seconds in ((0, 0.0), (-3, -1.0), (1, 0.0), (8, 0.01)) * 10:
        curve.observe(size, seconds)
    assert 0.0 < curve.mean(1) < curve.mean(8)


def test_changes_count_what_the_curve_has_become():
    curve = ServiceCurve()
    curve.observe(1, 0.01)
    before = curve.changes
    curve.observe(1, 0.1)
    curve.observe(1, 0.1)
    curve.observe(1, 0.1)
    assert curve.changes > before


def test_means_reads_the_curve_at_a_grid():
    curve = taught(linear, list(range(1, 65)) * 2)
    assert curve.means(1, 8) == [0.0] + [curve.mean(size) for size in range(1, 9)]
    assert curve.means(100, 30) == [0.0] + [curve.mean(size) for size in range(100, 3001, 100)]


@given(st.lists(st.tuples(st.integers(1, 3000), st.floats(1e-4, 10.0)), min_size=1, max_size=60))
def test_the_curve_never_falls_and_is_never_negative(observations):
    curve = ServiceCurve()
    for size, seconds in observations:
        curve.observe(size, seconds)
    sizes = [*range(1, 200), *range(200, 6000, 37)]
    means = [curve.mean(size) for size in sizes]
    assert all(a <= b + 1e-9 for a, b in pairwise(means))
    assert all(0.0 <= m <= curve.upper(s) for s, m in zip(sizes, means, strict=True))
    for step in (1, 7):
        hopes = curve.hopes(step, 500)
        assert all(a <= b + 1e-9 for a, b in pairwise(hopes))
        pairs = zip(hopes, curve.means(step, 500), strict=True)
        assert all(hope <= mean + 1e-9 for hope, mean in pairs)


@given(st.lists(st.tuples(st.floats(0.0, 10.0), st.floats(0.1, 10.0)), min_size=1, max_size=30))
def test_isotonic_is_the_closest_rising_sequence(points):
    values, weights = [v for v, _ in points], [w for _, w in points]
    fitted = isotonic(values, weights)
    assert all(a <= b for a, b in pairwise(fitted))
    assert sum(f * w for f, w in zip(fitted, weights, strict=True)) == pytest.approx(
        sum(v * w for v, w in points)
    )
    # Closest: no block of equal values can be moved or split for the better.
    for i in range(len(values)):
        for j in range(i, len(values)):
            if len(set(fitted[i : j + 1])) == 1:
                left = fitted[i - 1] if i else -1.0
                if left < fitted[i]:
                    total = sum(weights[i : j + 1])
                    head = sum(v * w for v, w in points[i : j + 1]) / total
                    assert head >= fitted[i] - 1e-6


def test_isotonic_leaves_what_rises_alone_and_pools_the_rest():
    assert isotonic([1.0, 2.0, 3.0], [1.0, 1.0, 1.0]) == [1.0, 2.0, 3.0]
    assert isotonic([3.0, 1.0, 4.0], [1.0, 3.0, 1.0]) == [1.5, 1.5, 4.0]
