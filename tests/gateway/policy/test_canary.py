"""A trial ends once, never too early with a promotion, and never better for more failures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.canary import EARLY_FAILURES, EARLY_REQUESTS, Rules, Sample, Trial

RULES = Rules(after_s=60.0, requests=100, errors=0.01, quantile=0.9, slower=1.5)
INF = float("inf")


def sample(requests=0, failed=0, *, fast=None):
    """`fast` of them took up to 10 ms, the rest up to 100 ms."""
    fast = requests if fast is None else fast
    return Sample(requests, failed, ((0.01, fast), (0.1, requests), (INF, requests)))


def trial(canary=None, stable=None):
    return Trial(RULES, "2-b", 0.0, canary or sample(), stable or sample())


def kind(verdict):
    return None if verdict is None else verdict.kind


GOOD, PLENTY = sample(100), sample(900)


def test_what_does_as_well_is_promoted_after_its_time_and_number():
    assert trial().judge(59.9, GOOD, PLENTY) is None
    assert trial().judge(60, sample(99), PLENTY) is None
    verdict = trial().judge(60, GOOD, PLENTY)
    assert verdict.kind == "promote"
    assert verdict.numbers["canary"] == {"requests": 100, "failed": 0, "latency_ms": 9.0}
    assert verdict.numbers["stable"]["requests"] == 900 and verdict.numbers["seconds"] == 60


def test_there_is_one_verdict():
    one = trial()
    assert one.judge(60, GOOD, PLENTY) is not None
    assert one.judge(61, sample(200, 200), PLENTY) is None and one.verdict.kind == "promote"


def test_a_promotion_waits_for_the_replicas_own_check_and_a_rollback_does_not():
    one = trial()
    assert one.judge(60, GOOD, PLENTY, settled=False) is None and one.verdict is None
    assert kind(one.judge(61, GOOD, PLENTY)) == "promote"
    bad = trial().judge(60, sample(100, 50), PLENTY, settled=False)
    assert bad.kind == "rollback" and "50.00%" in bad.why


def test_a_refusal_decides_at_once():
    verdict = trial().judge(1, sample(), sample(), refused="r-2: 2-b: NaN")
    assert verdict.kind == "rollback" and "NaN" in verdict.why


def test_many_failures_end_it_early_and_few_do_not():
    assert trial().judge(1, sample(EARLY_REQUESTS, EARLY_FAILURES - 1), PLENTY) is None
    assert kind(trial().judge(1, sample(EARLY_REQUESTS, EARLY_FAILURES), PLENTY)) == "rollback"


def test_failures_that_the_others_have_too_are_no_reason():
    assert kind(trial().judge(60, sample(100, 20), sample(900, 180))) == "promote"


def test_slower_than_allowed_is_rolled_back():
    verdict = trial().judge(60, sample(100, fast=50), PLENTY)
    assert verdict.kind == "rollback" and "ms" in verdict.why


def test_what_was_counted_before_does_not_count():
    before, others = sample(500, 400), sample(900, 0)
    one = trial(before, others)
    after = Sample(600, 400, ((0.01, 600), (0.1, 600), (INF, 600)))
    assert kind(one.judge(60, after, sample(1800))) == "promote"


def test_counts_that_begin_anew_are_taken_as_they_are():
    one = trial(sample(500, 400), sample(900))
    assert one.judge(60, sample(50), sample(900)) is None
    assert kind(one.judge(60, sample(120), sample(1000))) == "promote"


def test_without_others_to_compare_with_only_failures_count():
    assert kind(trial().judge(60, sample(100, fast=0), sample())) == "promote"
    assert kind(trial().judge(60, sample(100, 2), sample())) == "rollback"


counts = st.tuples(st.integers(0, 400), st.integers(0, 400), st.integers(0, 400)).map(
    lambda n: sample(sum(n), min(n[1], sum(n)), fast=n[0])
)


@given(counts, counts, st.floats(0, 200), st.booleans())
def test_whatever_the_counts_a_promotion_keeps_to_the_rules(canary, stable, now, settled):
    verdict = trial().judge(now, canary, stable, settled=settled)
    if kind(verdict) == "promote":
        assert settled and now >= RULES.after_s and canary.requests >= RULES.requests
        assert canary.failing <= stable.failing + RULES.errors


@given(counts, counts, st.floats(0, 200), st.integers(1, 400))
def test_more_failures_never_make_it_better(canary, stable, now, more):
    rank = {"rollback": 0, None: 1, "promote": 2}
    worse = Sample(canary.requests, min(canary.requests, canary.failed + more), canary.latency)
    one = kind(trial().judge(now, canary, stable))
    assert rank[kind(trial().judge(now, worse, stable))] <= rank[one]


@given(counts, st.floats(0.01, 0.999))
def test_a_quantile_lies_in_its_bucket(found, share):
    value = found.quantile(share)
    if not found.requests:
        assert value is None
        return
    fast = found.latency[0][1]
    assert 0 <= value <= 0.1
    # Interpolation rounds: at the bucket's very edge it may lie on either side.
    if value != pytest.approx(0.01):
        assert (value < 0.01) == (fast >= share * found.requests)


@given(counts, counts)
def test_what_was_added_is_the_difference(base, more):
    added = tuple((b, c + d) for (b, c), (_, d) in zip(base.latency, more.latency, strict=True))
    total = Sample(base.requests + more.requests, base.failed + more.failed, added)
    assert total.since(base) == more
