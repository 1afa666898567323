"""What fails over and over is told of seldom, and all of it is counted."""

from __future__ import annotations

from typing import Any

import pytest

from backends import crashes
from backends.crashes import EVERY_S, Crashes


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock: its last entry."""
    now = [0.0]
    monkeypatch.setattr("backends.crashes.time.monotonic", lambda: now[-1])
    return now


def test_one_event_a_while_counts_those_before_it(now: list[float]):
    log: list[tuple[str, dict[str, Any]]] = []
    tell = Crashes(lambda event, **fields: log.append((event, fields)), "model.raised", "batches")
    for at in (0.0, 0.4 * EVERY_S, 0.9 * EVERY_S, EVERY_S, 1.5 * EVERY_S, 9.0 * EVERY_S):
        now.append(at)
        assert tell(ValueError("x" * 900), rows=3) == ""
    assert [fields["batches"] for _, fields in log] == [1, 3, 2]
    event, fields = log[0]
    assert event == "model.raised" and fields["rows"] == 3 and len(fields["error"]) == 500


def test_it_says_where_it_was_raised(now: list[float]):
    log: list[dict[str, Any]] = []
    tell = Crashes(lambda event, **fields: log.append(fields), "device.crashed", "steps")
    try:
        raise ValueError("no")
    except ValueError as error:
        tell(error)
    assert __file__ in log[0]["where"]


def test_a_lost_device_is_said_each_time(now: list[float], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(crashes, "device_is_lost", lambda error: "illegal" in str(error))
    tell = Crashes(lambda event, **fields: None, "device.crashed", "steps")
    assert tell(RuntimeError("out of luck")) == ""
    for _ in range(2):
        assert tell(RuntimeError("illegal address")) == "the device is lost: illegal address"
