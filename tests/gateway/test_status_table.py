"""What a terminal shows of a status."""

from __future__ import annotations

from rich.console import Console

from gateway.status_table import render

REPLICA = {
    "name": "r", "state": "ready", "version": "2-b", "reload": "idle", "weight": 1.0,
    "drained": False, "in_flight": 0, "slots": 2, "work": 0.0, "breaker": "closed", "pid": 7,
    "reason": "",
}  # fmt: skip
ROLLOUT = {"versions": {"1-a": 1, "2-b": 1}, "skew_s": 0.0, "waiting": [], "refused": {}}
SIDES = {"requests": 40, "failed": 1, "latency_ms": 2.0}


def shown(**rollout):
    model = {
        "name": "m", "kind": "tensor", "ready": True, "waiting": 0, "counters": {},
        "replicas": [REPLICA], "rollout": {**ROLLOUT, "canary": None, **rollout},
    }  # fmt: skip
    status = {
        "version": "1", "state": "serving", "uptime_s": 61.0, "listen": "l", "workers": [],
        "models": [model],
    }  # fmt: skip
    console = Console(width=240, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as capture:
        console.print(render(status))
    return capture.get()


def test_skew_is_shown_while_versions_differ():
    assert "none" in shown() and "canary" not in shown()
    assert "2 versions, 12 s" in shown(skew_s=12.3)


def test_a_canary_shows_what_it_tries_and_how_it_does():
    canary = {"channel": "canary", "share": 0.1, "by": "session", "last": None}
    text = shown(canary={**canary, "trying": "2-b", "numbers": {"canary": SIDES, "stable": SIDES}})
    assert "10% by session: tries 2-b canary 40 requests, 1 failed; stable 40" in text
    last = {"decision": "rollback", "version": "2-b", "why": "slow"}
    text = shown(canary={**canary, "trying": "", "numbers": {}, "last": last})
    assert "tries nothing (last: rollback 2-b, slow)" in text
