"""What is counted, and what of it survives reloads and the way to another process."""

from __future__ import annotations

import orjson
from hypothesis import given
from hypothesis import strategies as st

from gateway.oip import ModelStats, VersionStats
from gateway.oip.documents import statistics
from gateway.oip.statistics import MAX_VERSIONS
from gateway.request import Answer

ANSWER = Answer((), "1-a", "r", 10, 20, 3)


def test_a_batch_of_two_requests():
    stats = ModelStats()
    stats.executed("1-a", 3, 20, 1700.5)
    stats.succeeded(ANSWER, 1, 0.001)
    stats.succeeded(ANSWER, 2, 0.002)
    stats.failed("1-a", 0.5)
    (line,) = statistics("m", stats, ["1-a"])
    assert (line["inference_count"], line["execution_count"]) == (3, 1)
    assert line["last_inference"] == 1_700_500
    assert line["inference_stats"] == {
        "success": {"count": 2, "ns": 3_000_000},
        "fail": {"count": 1, "ns": 500_000_000},
        "queue": {"count": 2, "ns": 20_000},
        "compute_input": {"count": 2, "ns": 0},
        "compute_infer": {"count": 2, "ns": 40_000},
        "compute_output": {"count": 2, "ns": 0},
        "cache_hit": {"count": 0, "ns": 0},
        "cache_miss": {"count": 0, "ns": 0},
    }
    nothing = {"count": 1, "ns": 0}
    assert line["batch_stats"] == [
        {
            "batch_size": 3,
            "compute_input": nothing,
            "compute_infer": {"count": 1, "ns": 20_000},
            "compute_output": nothing,
        }
    ]


def test_a_version_that_nobody_has_asked_is_all_zeros():
    (line,) = statistics("m", ModelStats(), ["9"])
    assert line["inference_count"] == line["execution_count"] == 0
    assert line["batch_stats"] == []


def test_a_thousand_reloads_take_no_more_memory():
    stats = ModelStats()
    for step in range(1000):
        stats.failed(f"{step}", 0.0)
    assert list(stats.versions) == [f"{step}" for step in range(1000 - MAX_VERSIONS, 1000)]


_EVENTS = st.lists(
    st.tuples(
        st.sampled_from(("executed", "succeeded", "failed")),
        st.sampled_from(("1", "2")),
        st.integers(1, 4),
        st.integers(0, 10**6),
    )
)


def after(events: list[tuple[str, str, int, int]]) -> ModelStats:
    stats = ModelStats()
    for event, version, rows, us in events:
        if event == "executed":
            stats.executed(version, rows, us, us)
        elif event == "succeeded":
            stats.succeeded(Answer((), version, "r", us, us, rows), rows, us / 1e6)
        else:
            stats.failed(version, us / 1e6)
    return stats


@given(_EVENTS, _EVENTS)
def test_workers_sum_to_one_that_saw_everything(first, second):
    whole = after(first + second)
    total = ModelStats.from_json(orjson.loads(orjson.dumps(after(first).to_json())))
    total.add(after(second))
    for version, stats in whole.versions.items():
        # The last execution is the latest, whichever worker counted it.
        stats.last_ms = total.versions[version].last_ms
    assert total == whole


def test_summing_leaves_the_summand_alone():
    one, other = ModelStats(), after([("executed", "1", 2, 5)])
    one.add(other)
    one.executed("1", 2, 5, 0)
    assert other.versions["1"] == VersionStats(executions=1, last_ms=5000, batches={2: [1, 5000]})
