"""The status of a whole gateway, put together from what its workers report.

Pure: reports in, one status out. Each worker sees every replica over a link of its own; the worst
that any of them sees is what counts, and what they hold of it adds up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.config import GatewayConfig

# From best to worst; what is not listed is worse than all.
STATES = ("ready", "draining", "loading", "unreachable", "failed")
BREAKERS = ("closed", "half_open", "open")

Json = dict[str, Any]


def overview(
    config: GatewayConfig, reports: Sequence[Json], processes: Mapping[str, Json]
) -> list[Json]:
    """The `models` of a status: every configured one, also while no worker reports. `processes`
    are those of the spawned replicas by name: pid, state, restarts, how the last one ended and what
    it said."""
    merged = []
    for model in config.models:
        seen = [
            found for report in reports for found in report["models"] if found["name"] == model.name
        ]
        replicas = []
        all_views = [view for found in seen for view in found["replicas"]]
        for replica in model.replicas:
            if replica.discover is not None:
                replicas += _found(replica.name, all_views)
                continue
            views = [view for view in all_views if view["name"] == replica.name]
            unseen = {
                "name": replica.name,
                "kind": replica.kind,
                "address": replica.address or "",
                "weight": replica.weight,
            }
            replicas.append(_replica(unseen, views, processes.get(replica.name)))
        merged.append({**_model(model.name, seen), "replicas": replicas})
    return merged


def _found(name: str, views: Sequence[Json]) -> list[Json]:
    """Replicas that a name in the configuration stands for, each named by its address."""
    by_name: dict[str, list[Json]] = {}
    for view in views:
        if view["name"].partition("@")[0] == name:
            by_name.setdefault(view["name"], []).append(view)
    return [_replica({}, each, None) for _, each in sorted(by_name.items())]


def _model(name: str, seen: Sequence[Json]) -> Json:
    counters: dict[str, int] = {}
    for found in seen:
        for counter, value in found.get("counters", {}).items():
            counters[counter] = counters.get(counter, 0) + value
    first = dict(seen[0]) if seen else {"name": name, "kind": "", "slo_ms": None}
    return {
        **first,
        "kind": next((found["kind"] for found in seen if found.get("kind")), ""),
        "ready": bool(seen) and all(found.get("ready") for found in seen),
        "waiting": sum(found.get("waiting", 0) for found in seen),
        "counters": counters,
    }


def _replica(unseen: Json, views: Sequence[Json], process: Json | None) -> Json:
    if views:
        states = [view.get("state") for view in views]
        worst = dict(views[states.index(max(states, key=lambda state: _rank(STATES, state)))])
        worst["in_flight"] = sum(view.get("in_flight", 0) for view in views)
        worst["work"] = round(sum(view.get("work", 0.0) for view in views), 6)
        worst["drained"] = any(view.get("drained") for view in views)
        breakers = [view.get("breaker", "closed") for view in views]
        worst["breaker"] = max(breakers, key=lambda breaker: _rank(BREAKERS, breaker))
    else:
        worst = {**unseen, "state": "unreachable", "reason": "no worker reports yet", **_NOTHING}
    if process is not None:
        worst["process"] = process
        if worst["state"] == "unreachable" and process["state"] == "waiting":
            said = f" ({process['said']})" if process.get("said") else ""
            worst["reason"] = f"its process {process['how']}{said}; it is started again"
    return worst


_NOTHING: Json = {
    "version": "",
    "versions": [],
    "generation": 0,
    "reload": "idle",
    "pid": 0,
    "drained": False,
    "breaker": "closed",
    "work": 0.0,
    "unit": "",
    "in_flight": 0,
    "slots": 0,
}


def _rank(order: Sequence[str], word: Any) -> int:
    return order.index(word) if word in order else len(order)
