"""The ring of events, and what is noticed between two statuses."""

from __future__ import annotations

from gateway.events import KEPT, Events, changes, failures


def test_events_are_numbered_dated_and_bounded():
    events = Events(clock=lambda: 1700000000.1234)
    for number in range(KEPT + 10):
        events.add("state", f"r-{number}", "text")
    kept = events.since()
    assert len(kept) == KEPT and kept[0]["id"] == 11 and kept[-1]["id"] == KEPT + 10
    assert kept[0] == {
        "id": 11, "at": 1700000000.123, "kind": "state", "name": "r-10", "text": "text"
    }  # fmt: skip
    assert [event["id"] for event in events.since(KEPT + 8)] == [KEPT + 9, KEPT + 10]
    assert [event["id"] for event in events.since(limit=1)] == [KEPT + 10]
    assert events.since(limit=0) == []


def models(**replica):
    return [
        {"name": "m", "replicas": [{"name": "r", "state": "ready", "version": "1-a", **replica}]}
    ]


def test_changes_of_a_replica_are_told():
    found = changes(
        models(reload="swap", reload_to="2-b"), models(state="failed", reason="no memory")
    )
    assert list(found) == [
        ("state", "r", "ready → failed: no memory"),
        ("reload", "r", "idle"),
    ]
    assert list(changes(models(), models(version="2-b", reload="load", reload_to="2-b"))) == [
        ("version", "r", "serves 2-b (before: 1-a)"),
        ("reload", "r", "load 2-b"),
    ]
    assert list(changes(models(version=""), models())) == [("version", "r", "serves 1-a")]


def test_no_change_and_new_replicas_are_no_events():
    assert list(changes(models(), models())) == []
    assert list(changes([], models())) == []
    assert list(changes(models(), models(version=""))) == []


def test_a_failure_is_told_once_for_each_reason_and_of_new_replicas_too():
    failed = models(state="failed", reason="no memory")
    assert list(failures([], failed)) == [("m", "r", "no memory")]
    assert list(failures(models(), failed)) == [("m", "r", "no memory")]
    assert list(failures(failed, failed)) == []
    assert list(failures(failed, models(state="failed", reason="no GPU"))) == [("m", "r", "no GPU")]
    assert list(failures(failed, models())) == []
