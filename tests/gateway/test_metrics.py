"""Sums of workers' snapshots, and their exposition as prometheus_client's own parser reads it."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
from hypothesis import given
from prometheus_client.parser import text_string_to_metric_families

from gateway.exposition import render
from gateway.metrics import Ledger, gateway_families, merge


def counter(*samples, name="penstock_requests_total", labels=("model", "end")):
    return [name, "counter", "Requests.", list(labels), *samples]


def histogram(*counts, total=1.5, name="penstock_request_seconds"):
    buckets = [["0.1", counts[0]], ["1", counts[1]], ["+Inf", counts[2]]]
    value = {"buckets": buckets, "sum": total, "count": counts[2]}
    return [name, "histogram", "Seconds.", ["model"], [["m"], value]]


def parsed(families):
    found = {}
    for family in text_string_to_metric_families(render(families)):
        for sample in family.samples:
            found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return found


def test_equal_labels_add_up_and_others_stand_beside():
    one = [counter([["m", "done"], 2], [["m", "failed"], 1]), histogram(1, 2, 3)]
    two = [counter([["m", "done"], 5], [["n", "done"], 7]), histogram(0, 1, 4, total=2.0)]
    found = parsed(merge([one, two]))
    assert found["penstock_requests_total", (("end", "done"), ("model", "m"))] == 7
    assert found["penstock_requests_total", (("end", "failed"), ("model", "m"))] == 1
    assert found["penstock_requests_total", (("end", "done"), ("model", "n"))] == 7
    assert found["penstock_request_seconds_count", (("model", "m"),)] == 7
    assert found["penstock_request_seconds_sum", (("model", "m"),)] == 3.5
    assert found["penstock_request_seconds_bucket", (("le", "0.1"), ("model", "m"))] == 1
    assert found["penstock_request_seconds_bucket", (("le", "+Inf"), ("model", "m"))] == 7


def test_merging_leaves_the_snapshots_as_they_were():
    one = [counter([["m", "done"], 2]), histogram(1, 2, 3)]
    merge([one, one, one])
    assert one == [counter([["m", "done"], 2]), histogram(1, 2, 3)]


def test_help_type_and_odd_label_values_survive():
    text = render([counter([['a"b\\c\nd', "done"], 1])])
    assert "# HELP penstock_requests_total Requests." in text
    assert "# TYPE penstock_requests_total counter" in text
    (family,) = text_string_to_metric_families(text)
    assert family.samples[0].labels["model"] == 'a"b\\c\nd'


def test_a_family_that_differs_between_workers_is_an_error():
    with pytest.raises(ValueError, match="penstock_requests_total is a gauge"):
        merge(
            [[counter([["m", "done"], 1])], [["penstock_requests_total", "gauge", "", ["model"]]]]
        )
    other = histogram(1, 2, 3)
    other[4][1]["buckets"][0][0] = "0.2"
    with pytest.raises(ValueError, match="other buckets cannot be added"):
        merge([[histogram(1, 2, 3)], [other]])


SAMPLES = st.dictionaries(
    st.tuples(st.sampled_from("mn"), st.sampled_from(["done", "failed"])), st.integers(0, 1000)
)


@given(st.lists(SAMPLES, max_size=5), st.randoms())
def test_order_and_grouping_of_workers_do_not_matter(workers, random):
    snapshots = [[counter(*([list(key), value] for key, value in w.items()))] for w in workers]
    whole = parsed(merge(snapshots))
    cut = random.randint(0, len(snapshots))
    grouped = merge([merge(snapshots[:cut]), merge(snapshots[cut:])])
    random.shuffle(snapshots)
    assert parsed(grouped) == parsed(merge(snapshots)) == whole
    assert sum(whole.values()) == sum(sum(worker.values()) for worker in workers)


def test_what_a_dead_worker_counted_stays_and_what_it_held_goes():
    live = ["penstock_requests_live", "gauge", "Live.", ["model"], [["m"], 4]]
    ledger = Ledger()
    ledger.seen("worker-0/1", [counter([["m", "done"], 9]), live, histogram(1, 2, 3)])
    ledger.gone("worker-0/1")
    ledger.seen("worker-0/2", [counter([["m", "done"], 1]), live, histogram(0, 0, 1)])
    found = parsed(ledger.total())
    assert found["penstock_requests_total", (("end", "done"), ("model", "m"))] == 10
    assert found["penstock_request_seconds_count", (("model", "m"),)] == 4
    assert found["penstock_requests_live", (("model", "m"),)] == 4
    ledger.gone("worker-0/2")
    ledger.gone("worker-9/1")  # it was never seen
    assert ("penstock_requests_live", (("model", "m"),)) not in parsed(ledger.total())


def test_what_the_whole_gateway_knows_is_there():
    replica = {"name": "r", "state": "ready", "in_flight": 2, "weight": 0.5}
    worker = {"name": "worker-0", "restarts": 1, "rss_mb": 2.0}
    status = {
        "version": "1.2",
        "uptime_s": 3.0,
        "workers": [worker, {"name": "worker-1", "restarts": 0, "rss_mb": None}],
        "models": [
            {
                "name": "m",
                "replicas": [{**replica, "process": {"restarts": 3}}],
                "rollout": {"versions": {"1-a": 2, "2-b": 1}, "skew_s": 1.5},
            },
            {"name": "n", "replicas": [{**replica, "name": "s", "state": "failed"}]},
        ],
    }
    found = parsed(gateway_families(status))
    r, s = (("model", "m"), ("replica", "r")), (("model", "n"), ("replica", "s"))
    served = "penstock_version_replicas"
    assert found[served, (("model", "m"), ("version", "1-a"))] == 2
    assert found[served, (("model", "m"), ("version", "2-b"))] == 1
    assert found["penstock_version_skew_seconds", (("model", "m"),)] == 1.5
    assert found["penstock_replica_ready", r] == 1
    assert found["penstock_replica_ready", s] == 0
    assert found["penstock_replica_in_flight", r] == 2
    assert found["penstock_replica_weight", r] == 0.5
    assert found["penstock_replica_restarts_total", r] == 3
    assert ("penstock_replica_restarts_total", s) not in found
    assert found["penstock_worker_resident_bytes", (("worker", "worker-0"),)] == 2 * 2**20
    assert ("penstock_worker_resident_bytes", (("worker", "worker-1"),)) not in found
    assert found["penstock_worker_restarts_total", (("worker", "worker-0"),)] == 1
    assert found["penstock_info", (("version", "1.2"),)] == 1
    assert not any(math.isnan(value) for value in found.values())
