"""Metrics of a whole gateway: the workers' snapshots added up.

Owns the sum, not the counting: workers count, and `exposition` writes. Invariant: what was shown of
a counter never shrinks when a worker dies, because the last that was seen of it stays in the sum.

A snapshot is a list of families: [name, "counter"|"gauge"|"histogram", help, [label names],
[[label values], value] …]; the value of a histogram is {"buckets": [[le, cumulative count] …],
"sum": x, "count": n}.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Family = list[Any]


def merge(snapshots: Iterable[Sequence[Family]]) -> list[Family]:
    """One snapshot: values with the same family and labels added. Raises ValueError when families
    of one name differ in what they are."""
    heads: dict[str, Family] = {}
    values: dict[str, dict[tuple[str, ...], Any]] = {}
    for snapshot in snapshots:
        for name, kind, text, labels, *samples in snapshot:
            head = heads.setdefault(name, [name, kind, text, labels])
            if (head[1], head[3]) != (kind, labels):
                raise ValueError(f"{name} is a {kind} of {labels} here, a {head[1]} of {head[3]}")
            sums = values.setdefault(name, {})
            for label_values, value in samples:
                key = tuple(map(str, label_values))
                sums[key] = _add(name, sums[key], value) if key in sums else value
    return [
        [*head, *([list(key), value] for key, value in values[name].items())]
        for name, head in heads.items()
    ]


class Ledger:
    """Sums over workers that come and go. `key` names one life of one worker."""

    def __init__(self) -> None:
        self._last: dict[str, list[Family]] = {}
        self._gone: list[Family] = []

    def seen(self, key: str, families: list[Family]) -> None:
        self._last[key] = families

    def gone(self, key: str) -> None:
        """That worker has died: what it counted stays, what it held does not."""
        counted = [family for family in self._last.pop(key, []) if family[1] != "gauge"]
        self._gone = merge([self._gone, counted])

    def total(self) -> list[Family]:
        return merge([*self._last.values(), self._gone])


def gateway_families(status: dict[str, Any]) -> list[Family]:
    """What only the gateway as a whole knows, from its status."""
    ready, in_flight, weights, replica_restarts = [], [], [], []
    versions, skews = [], []
    for model in status["models"]:
        rollout = model.get("rollout", {"versions": {}, "skew_s": 0.0})
        versions += [[[model["name"], v], n] for v, n in rollout["versions"].items()]
        skews.append([[model["name"]], rollout["skew_s"]])
        for replica in model["replicas"]:
            labels = [model["name"], replica["name"]]
            ready.append([labels, int(replica["state"] == "ready")])
            in_flight.append([labels, replica["in_flight"]])
            weights.append([labels, replica["weight"]])
            if "process" in replica:
                replica_restarts.append([labels, replica["process"]["restarts"]])
    workers = status["workers"]
    restarts = [[[worker["name"]], worker["restarts"]] for worker in workers]
    memory = [[[w["name"]], w["rss_mb"] * 2**20] for w in workers if w["rss_mb"] is not None]
    of = ["model", "replica"]
    return [
        ["penstock_info", "gauge", "The gateway's version.", ["version"], [[status["version"]], 1]],
        ["penstock_uptime_seconds", "gauge", "Since the start.", [], [[], status["uptime_s"]]],
        ["penstock_worker_restarts_total", "counter", "Workers that died.", ["worker"], *restarts],
        ["penstock_worker_resident_bytes", "gauge", "Memory of a worker.", ["worker"], *memory],
        ["penstock_replica_ready", "gauge", "1 where every worker may use it.", of, *ready],
        ["penstock_replica_in_flight", "gauge", "Batches that it executes.", of, *in_flight],
        ["penstock_replica_weight", "gauge", "Its share beside the others.", of, *weights],
        [
            "penstock_version_replicas",
            "gauge",
            "Native replicas that serve a version.",
            ["model", "version"],
            *versions,
        ],
        [
            "penstock_version_skew_seconds",
            "gauge",
            "For how long replicas of one channel have served different versions.",
            ["model"],
            *skews,
        ],
        ["penstock_replica_restarts_total", "counter", "Of its process.", of, *replica_restarts],
    ]


def _add(name: str, left: Any, right: Any) -> Any:
    if not isinstance(left, dict):
        return left + right
    bounds = [le for le, _ in left["buckets"]]
    if bounds != [le for le, _ in right["buckets"]]:
        raise ValueError(f"{name}: histograms with other buckets cannot be added")
    counts = zip(left["buckets"], right["buckets"], strict=True)
    return {
        "buckets": [[le, mine + other] for (le, mine), (_, other) in counts],
        "sum": left["sum"] + right["sum"],
        "count": left["count"] + right["count"],
    }
