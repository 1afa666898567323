"""A canary's course in the gateway: tried, judged by what was counted, and its channel moved."""

from __future__ import annotations

import pytest

from gateway.canary import FAILURES, RETRY_S, SECONDS, Canary
from gateway.config import CanaryConfig
from gateway.control import ControlError
from gateway.events import Events
from gateway.policy.rolling import View

OLD, NEW = "1-a", "2-b"


def views(canary=NEW, stable=OLD, *, reload="idle", refused=()):
    return {
        "c": View(version=canary, channel="canary", reload=reload, refused=refused, reason="why"),
        "r": View(version=stable, channel="stable"),
    }


def families(**counts):
    """version: (requests, failed), all within 10 ms."""
    named = {OLD: counts.get("old", (0, 0)), NEW: counts.get("new", (0, 0))}
    return [
        [SECONDS, "histogram", "", ["model", "version"],
         *([["m", v], {"buckets": [["0.01", n], ["+Inf", n]], "sum": 0.0, "count": n}]
           for v, (n, _) in named.items())],
        [FAILURES, "counter", "", ["model", "version"],
         *([["m", v], bad] for v, (_, bad) in named.items())],
    ]  # fmt: skip


class Bench:
    def __init__(self, **config):
        self.asked, self.events = [], Events()
        self.error = None
        keys = {"channel": "canary", "after_s": 10, "requests": 50, **config}
        self.canary = Canary("m", CanaryConfig(**keys), self.ask, self.events)

    async def ask(self, replica, op, **arguments):
        if self.error:
            raise self.error
        self.asked.append((replica, op, arguments))
        return {"channel": arguments["channel"], "version": NEW, "generation": 7}

    def said(self):
        return [event["text"] for event in self.events.since()]


PROMOTED = ("c", "point", {"channel": "stable", "like": "canary", "version": NEW, "before": ""})
BACK = ("c", "point", {"channel": "canary", "like": "stable", "version": "", "before": NEW})


async def test_a_good_version_is_promoted_with_its_numbers_in_an_event():
    bench = Bench()
    await bench.canary.look(views(), families(old=(500, 3)), 0)
    assert bench.canary.report()["trying"] == NEW
    await bench.canary.look(views(), families(old=(900, 3), new=(60, 0)), 9)
    assert not bench.asked
    await bench.canary.look(views(), families(old=(900, 3), new=(60, 0)), 10)
    assert bench.asked == [PROMOTED]
    assert "promoted" in bench.said()[-1] and "canary: 60 requests, 0 failed" in bench.said()[-1]
    assert bench.canary.report()["last"]["decision"] == "promote"
    # It is not tried again while the others follow.
    await bench.canary.look(views(), families(old=(900, 3), new=(99, 99)), 30)
    assert len(bench.asked) == 1 and bench.canary.report()["trying"] == ""


async def test_a_failing_version_is_rolled_back_before_its_time():
    bench = Bench()
    await bench.canary.look(views(), families(), 0)
    await bench.canary.look(views(), families(old=(100, 0), new=(30, 10)), 2)
    assert bench.asked == [BACK] and "33.33%" in bench.said()[-1]


async def test_a_version_that_its_replica_refused_is_rolled_back():
    bench = Bench()
    await bench.canary.look(views(), families(), 0)
    await bench.canary.look(views(OLD, refused=(NEW,)), families(), 1)
    assert bench.asked == [BACK] and "c refused it: why" in bench.said()[-1]


async def test_a_canary_that_is_away_keeps_what_it_did():
    bench = Bench()
    await bench.canary.look(views(), families(), 0)
    await bench.canary.look(views(canary=""), families(new=(30, 10)), 1)
    assert not bench.asked and bench.canary.report()["trying"] == NEW
    await bench.canary.look(views(), families(new=(30, 10)), 2)
    assert bench.asked == [BACK]


async def test_nothing_is_decided_by_itself_where_operators_decide():
    bench = Bench(decide="manual")
    await bench.canary.look(views(), families(), 0)
    await bench.canary.look(views(), families(old=(100, 0), new=(90, 0)), 99)
    assert not bench.asked
    answer = await bench.canary.promote(views())
    assert bench.asked == [PROMOTED] and answer["decision"] == "promote"
    assert "by an operator" in bench.said()[-1]


async def test_equal_versions_leave_nothing_to_promote():
    bench = Bench()
    await bench.canary.look(views(OLD), families(), 0)
    assert bench.said() == []
    with pytest.raises(ControlError, match="tries nothing"):
        await bench.canary.promote(views(OLD))


async def test_a_move_that_fails_is_said_and_tried_again():
    bench = Bench()
    await bench.canary.look(views(), families(), 0)
    bench.error = ControlError("the disk is full", status=503, code="unreachable")
    counted = families(old=(900, 0), new=(60, 0))
    await bench.canary.look(views(), counted, 10)
    assert "the disk is full" in bench.said()[-1]
    bench.error = None
    await bench.canary.look(views(), counted, 10 + RETRY_S - 1)
    assert not bench.asked
    await bench.canary.look(views(), counted, 10 + RETRY_S)
    assert bench.asked == [PROMOTED]


async def test_a_channel_that_has_moved_meanwhile_is_left_alone():
    bench = Bench()
    await bench.canary.look(views(), families(), 0)
    bench.error = ControlError("channel canary is at 3-c", status=409, code="conflict")
    await bench.canary.look(views(), families(old=(900, 0), new=(60, 0)), 10)
    bench.error = None
    await bench.canary.look(views(), families(old=(900, 0), new=(90, 0)), 60)
    assert not bench.asked
    await bench.canary.look(views("3-c"), families(), 61)
    assert bench.canary.report()["trying"] == "3-c"
