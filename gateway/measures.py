"""What a worker counts of one model, cheap enough for every request, and its form for `/metrics`.

Plain integers and fixed buckets; nothing here allocates a label or takes a lock. Invariant:
accepted = done + failed + cancelled + live, at every moment between two events.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from gateway.errors import Cancelled, GatewayError
from gateway.lane import LaneStats
from gateway.oip.statistics import ModelStats
from gateway.request import Answer, TensorRequest

# Half-decades from 100 µs to 100 s: enough to see a p99 move, few enough to sum over workers.
SECONDS = tuple(m * 10.0**e for e in range(-4, 2) for m in (1.0, 2.0, 3.0, 5.0, 7.0))
ROWS = tuple(float(2**e) for e in range(13))
# Versions that are compared at a time are two; those before them are soon of no interest.
MAX_VERSIONS = 16

Family = list[Any]


class Histogram:
    """Counts per bucket of `bounds`, in their unit; the last bucket is unbounded."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def to_json(self) -> dict[str, Any]:
        """Cumulative buckets, as Prometheus counts them."""
        total, buckets = 0, []
        for bound, count in zip([*self.bounds, float("inf")], self.counts, strict=True):
            total += count
            buckets.append(["+Inf" if bound == float("inf") else f"{bound:g}", total])
        return {"buckets": buckets, "sum": self.sum, "count": total}


class VersionMeasures:
    """What a version did, for the comparison of two. `latency`: of its requests, from the batch's
    departure: how long a queue is says nothing of a version."""

    __slots__ = ("failed", "latency")

    def __init__(self) -> None:
        self.failed = 0
        self.latency = Histogram(SECONDS)


class Measures:
    """One model's. `by_version` is kept only where versions are compared."""

    def __init__(self) -> None:
        self.accepted = self.done = self.failed = self.cancelled = 0
        self.retried = self.hedged = 0
        self.statistics = ModelStats()
        self.codes: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.by_replica: Counter[tuple[str, str]] = Counter()
        self.by_version: dict[str, VersionMeasures] = {}
        self.latency = Histogram(SECONDS)
        self.queue = Histogram(SECONDS)
        self.service = Histogram(SECONDS)
        self.batch_rows = Histogram(ROWS)

    def ended(
        self, request: TensorRequest, outcome: Answer | GatewayError, now: float, serving: str
    ) -> None:
        """`serving`: the version that a request gets which pins none."""
        seconds = now - request.arrived
        if isinstance(outcome, Answer):
            self.done += 1
            self.latency.observe(seconds)
            self.statistics.succeeded(outcome, request.rows, seconds)
        elif isinstance(outcome, Cancelled):
            self.cancelled += 1
        else:
            self.failed += 1
            self.codes[outcome.code] += 1
            self.statistics.failed(request.version or serving, seconds)

    def sent(self, reason: str, rows: int, waited: Iterable[float]) -> None:
        """A batch left for its replica, for this reason."""
        self.reasons[reason] += 1
        self.batch_rows.observe(rows)
        for seconds in waited:
            self.queue.observe(seconds)

    def answered(self, replica: str, meta: dict[str, Any], wall_s: float) -> None:
        """A replica answered a batch; `meta` is RESULT's, `wall_s` is Unix time."""
        version, rows, compute_us = meta["version"], meta["rows"], meta["compute_us"]
        self.by_replica[replica, version] += len(rows)
        self.service.observe(compute_us / 1e6)
        self.statistics.executed(version, sum(rows), compute_us, wall_s)

    def compared(self, version: str, failed: Sequence[bool], seconds: float) -> None:
        """A batch of this version ended after that time at its replica; which requests failed."""
        measures = self.by_version.get(version)
        if measures is None:
            while len(self.by_version) >= MAX_VERSIONS:
                least = min(self.by_version, key=lambda v: sum(self.by_version[v].latency.counts))
                del self.by_version[least]
            measures = self.by_version[version] = VersionMeasures()
        for bad in failed:
            measures.failed += bad
            measures.latency.observe(seconds)

    def families(self, model: str, live: int, waiting: int) -> list[Family]:
        """For the worker's snapshot: [name, type, help, label names, [[label values], value] …]."""
        ends = {"done": self.done, "failed": self.failed, "cancelled": self.cancelled}
        return [
            family("penstock_requests_total", "counter", "Requests by how they ended.",
                    ["model", "end"], [[[model, end], n] for end, n in ends.items()]),
            family("penstock_requests_accepted_total", "counter", "Requests taken in.",
                    ["model"], [[[model], self.accepted]]),
            family("penstock_requests_live", "gauge", "Requests that have not ended.",
                    ["model"], [[[model], live]]),
            family("penstock_requests_waiting", "gauge", "Requests in the queue.",
                    ["model"], [[[model], waiting]]),
            family("penstock_requests_retried_total", "counter",
                    "Requests put back to the queue because their replica did not answer.",
                    ["model"], [[[model], self.retried]]),
            family("penstock_hedges_total", "counter",
                    "Second copies of what took longer than nearly all.",
                    ["model"], [[[model], self.hedged]]),
            family("penstock_errors_total", "counter", "Failed requests by the error's code.",
                    ["model", "code"], [[[model, c], n] for c, n in self.codes.items()]),
            family("penstock_batches_total", "counter", "Batches by why they were sent.",
                    ["model", "reason"], [[[model, r], n] for r, n in self.reasons.items()]),
            family("penstock_answers_total", "counter", "Answers by replica and version.",
                    ["model", "replica", "version"],
                    [[[model, *key], n] for key, n in self.by_replica.items()]),
            family("penstock_version_failures_total", "counter",
                    "Requests on which a version failed, or during which its replica died.",
                    ["model", "version"],
                    [[[model, v], m.failed] for v, m in self.by_version.items()]),
            family("penstock_version_seconds", "histogram",
                    "At the replica, by the version that answered.", ["model", "version"],
                    [[[model, v], m.latency.to_json()] for v, m in self.by_version.items()]),
            family("penstock_request_seconds", "histogram", "From arrival to the answer.",
                    ["model"], [[[model], self.latency.to_json()]]),
            family("penstock_queue_seconds", "histogram", "From arrival to the batch's departure.",
                    ["model"], [[[model], self.queue.to_json()]]),
            family("penstock_service_seconds", "histogram", "Of a batch on the device.",
                    ["model"], [[[model], self.service.to_json()]]),
            family("penstock_batch_rows", "histogram", "Rows that the gateway sent together.",
                    ["model"], [[[model], self.batch_rows.to_json()]]),
        ]  # fmt: skip


def lane_families(stats: LaneStats) -> list[Family]:
    """The same for the worker's lane."""
    refused = {"refused": stats.refused, "timeout": stats.timeouts, "gone": stats.gone}
    return [
        family("penstock_connections_accepted_total", "counter", "Connections taken in.",
                [], [[[], stats.accepted]]),
        family("penstock_connections_open", "gauge", "Connections that are open.",
                [], [[[], stats.open]]),
        family("penstock_http_requests_total", "counter", "Requests by the lane that served them.",
                ["lane"], [[["fast"], stats.requests], [["app"], stats.handed_over]]),
        family("penstock_http_broken_total", "counter",
                "Requests refused or broken off by the lane itself.",
                ["why"], [[[why], count] for why, count in refused.items()]),
    ]  # fmt: skip


def family(name: str, kind: str, text: str, labels: list[str], values: list[Any]) -> Family:
    return [name, kind, text, labels, *values]
