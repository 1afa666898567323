"""What refused clients are told about trying again."""

from __future__ import annotations

import pytest

from gateway.errors import BadRequest, LimitReached, NoReplica, Poisonous, Shed
from gateway.retry_advice import advice


def lines(error, fields=b""):
    said = advice(error, fields).decode().split("\r\n")
    assert said.pop() == ""
    return dict(line.split(": ") for line in said)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (BadRequest("no"), {}),
        (NoReplica("no"), {}),
        (Shed("no"), {"x-should-retry": "true"}),
        (Poisonous("no"), {"x-should-retry": "false"}),
        (
            Shed("no", retry_after=0.0301),
            {"retry-after": "1", "retry-after-ms": "31", "x-should-retry": "true"},
        ),
        (NoReplica("no", retry_after=1.2), {"retry-after": "2", "retry-after-ms": "1200"}),
        (
            LimitReached("no", retry_after=61.0),
            {"retry-after": "61", "retry-after-ms": "61000", "x-should-retry": "false"},
        ),
        (Shed("no", retry_after=float("inf")), {"x-should-retry": "false"}),
    ],
)
def test_it_is_said_what_is_known(error, said):
    assert lines(error) == said


def test_what_was_said_before_stays():
    assert lines(Shed("no"), b"x-should-retry: false\r\n") == {}
