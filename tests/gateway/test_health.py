"""Probes say the truth, in the forms that balancers ask for."""

from __future__ import annotations

import pytest

from gateway.health import HealthSurface


class Asked:
    """An exchange that keeps its answer."""

    def __init__(self, method: str, path: str) -> None:
        self.method, self.path = method, path
        self.status, self.body = 0, b""

    def respond(self, status, body=b"", content_type=b"application/json", fields=b"") -> None:
        self.status, self.body, self.fields = status, body, fields


def ask(ready, method: str, path: str) -> Asked:
    asked = Asked(method, path)
    handler = HealthSurface(lambda: ready).resolve(method, path)
    handler(asked)
    return asked


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_worker_that_answers_is_alive_whatever_its_models_do(method):
    asked = ask((False, {"models": {"m": "no replica"}}), method, "/healthz")
    assert (asked.status, asked.body) == (200, b'{"status":"alive"}')


def test_readiness_says_what_is_missing():
    assert ask((True, {}), "GET", "/readyz").status == 200
    asked = ask((False, {"models": {"m": "r-0 is loading"}}), "GET", "/readyz")
    assert asked.status == 503
    assert b"r-0 is loading" in asked.body


@pytest.mark.interpreted
def test_other_verbs_and_paths_are_not_for_it():
    asked = ask((True, {}), "POST", "/healthz")
    assert asked.status == 405
    assert b"allow: GET, HEAD" in asked.fields
    assert HealthSurface(lambda: (True, {})).resolve("GET", "/health") is None
