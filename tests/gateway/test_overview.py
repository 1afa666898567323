"""One status out of what several workers report."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
from hypothesis import given

from gateway.config import parse
from gateway.overview import STATES, overview

CONFIG = parse(
    """
[[models]]
name = "m"
[[models.replicas]]
name = "r"
address = "tcp:h:1"
weight = 2
[[models]]
name = "n"
[[models.replicas]]
name = "s"
address = "tcp:h:2"
""",
    Path("serve.toml"),
    {},
)


def replica(state="ready", **more):
    plain = {
        "name": "r", "state": state, "reason": f"it is {state}", "version": "1-a", "pid": 7,
        "weight": 2.0, "drained": False, "breaker": "closed", "work": 0.25, "in_flight": 1,
    }  # fmt: skip
    return {**plain, **more}


def report(*replicas, ready=True, **counters):
    model = {"name": "m", "kind": "tensor", "ready": ready, "waiting": 2, "slo_ms": 5.0}
    return {"pid": 1, "models": [{**model, "counters": counters, "replicas": list(replicas)}]}


def merged(*reports, processes=None):
    return overview(CONFIG, reports, processes or {})


def test_counters_and_loads_add_up():
    one = report(replica(work=0.5, in_flight=2), accepted=5, done=4, live=1)
    two = report(replica(), accepted=7, done=6, failed=1)
    model = merged(one, two)[0]
    assert model["counters"] == {"accepted": 12, "done": 10, "live": 1, "failed": 1}
    assert model["waiting"] == 4 and model["ready"] and model["slo_ms"] == 5.0
    (found,) = model["replicas"]
    assert (found["work"], found["in_flight"], found["state"]) == (0.75, 3, "ready")


@given(st.lists(st.sampled_from(STATES), min_size=1, max_size=4))
def test_the_worst_that_any_worker_sees_is_what_is_shown(states):
    (found,) = merged(*(report(replica(state)) for state in states))[0]["replicas"]
    worst = max(states, key=STATES.index)
    assert found["state"] == worst and found["reason"] == f"it is {worst}"


def test_a_model_is_ready_where_all_workers_find_it_so():
    assert not merged(report(replica()), report(replica(), ready=False))[0]["ready"]


def test_open_breakers_and_drains_of_any_worker_show():
    views = [replica(breaker="open"), replica(breaker="half_open", drained=True), replica()]
    (found,) = merged(*map(report, views))[0]["replicas"]
    assert found["breaker"] == "open" and found["drained"]


def test_everything_configured_is_there_before_any_worker_reports():
    first, second = merged()
    assert (first["name"], first["ready"], first["counters"]) == ("m", False, {})
    assert first["replicas"][0]["state"] == "unreachable"
    assert first["replicas"][0]["weight"] == 2.0
    assert second["replicas"][0]["reason"] == "no worker reports yet"
    assert set(replica()) <= set(second["replicas"][0])


def test_why_a_process_does_not_run_explains_why_nobody_reaches_it():
    process = {"pid": 0, "state": "waiting", "restarts": 3, "how": "exited with status 2"}
    view = replica("unreachable")
    (found,) = merged(report(view), processes={"r": process})[0]["replicas"]
    assert found["reason"] == "its process exited with status 2; it is started again"
    assert found["process"] == process
    process["said"] = "no such file"
    (found,) = merged(report(view), processes={"r": process})[0]["replicas"]
    assert found["reason"].startswith("its process exited with status 2 (no such file);")
    (ready,) = merged(report(replica()), processes={"r": process})[0]["replicas"]
    assert ready["reason"] == "it is ready"
