"""A replica's state: the first thing that keeps it from serving, and requests only without one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backends.config import parse
from backends.errors import Conflict, NotReady
from backends.reload_terms import Target
from backends.standing import Standing


class Stood:
    """A standing, what it is told by and whom it tells."""

    def __init__(self) -> None:
        config = parse('model = "m"\nrun = "run"\nhang_s = 5', Path("r.toml"), {}, [])
        self.busy_s, self.amiss, self.changes = 0.0, "", 0
        self.log: list[tuple[str, dict[str, Any]]] = []
        self.standing: Standing[Any] = Standing(
            config,
            lambda event, **fields: self.log.append((event, fields)),
            self._changed,
            busy_s=lambda: self.busy_s,
            work="a step",
            measure="step_s",
            amiss=lambda: self.amiss,
        )

    def _changed(self) -> None:
        self.changes += 1

    def follow(self, problem: str = "", stuck: bool = False) -> None:
        follower = SimpleNamespace(
            stuck=stuck,
            tick=lambda: None,
            generation=7,
            stage="load",
            loading_to="step-2",
            goal=Target(2, "b" * 32, 7),
            channel="stable",
            refused=("step-1",),
            crowded="step-3",
        )
        subscription: Any = SimpleNamespace(problem=problem, follower=follower)
        self.standing.subscription = subscription

    def serve(self) -> None:
        version = SimpleNamespace(name="step-0")
        self.standing.serving = version
        self.standing.versions = {"step-0": version, "step-9": version}


@pytest.fixture
def stood() -> Stood:
    return Stood()


def test_its_state_on_the_way_to_serving(stood: Stood):
    standing = stood.standing
    assert standing.state() == ("loading", "importing torch")
    standing.starting = "loading m:M"
    assert standing.state() == ("loading", "loading m:M")
    stood.follow("waiting for the first")
    assert standing.state() == ("loading", "waiting for the first")
    stood.follow("it does not fit", stuck=True)
    assert standing.state() == ("failed", "it does not fit")
    stood.serve()
    assert standing.state() == ("ready", "it does not fit")
    stood.amiss = "interpreted"
    assert standing.state() == ("ready", "it does not fit")
    stood.follow()
    assert standing.state() == ("ready", "interpreted")


def test_requests_are_taken_exactly_while_it_is_ready(stood: Stood):
    standing = stood.standing
    with pytest.raises(NotReady, match="is loading: importing torch"):
        standing.ready()
    stood.serve()
    assert standing.ready() is standing.serving
    standing.drain("by an operator")
    with pytest.raises(NotReady, match="is draining: by an operator"):
        standing.ready()
    standing.undrain()
    assert standing.ready() is standing.serving
    standing.fail("the device is lost")
    with pytest.raises(NotReady, match="is failed: the device is lost"):
        standing.ready()
    standing.drain("by an operator")
    assert standing.state() == ("failed", "the device is lost")
    assert stood.log == [("failed", {"reason": "the device is lost"})]
    assert stood.changes == 4


def test_a_device_that_hangs_is_told_of_once_and_may_come_back(stood: Stood):
    standing = stood.standing
    stood.serve()
    stood.busy_s = 5.0
    standing.tick()
    assert standing.state()[0] == "ready"
    for busy in (6.04, 8.0):
        stood.busy_s = busy
        standing.tick()
    assert standing.state() == ("failed", "a step on the device has run for 8 s")
    with pytest.raises(NotReady):
        standing.ready()
    stood.busy_s = 0.0
    standing.tick()
    assert standing.state() == ("ready", "")
    assert stood.log == [("device.hung", {"step_s": 6.0}), ("device.back", {"step_s": 0.0})]
    assert stood.changes == 2


def test_status_is_made_of_what_serves_and_what_is_followed(stood: Stood):
    status = stood.standing.status(slots=3, load={"calls": 1.0})
    assert (status.version, status.versions, status.generation) == ("", (), 0)
    assert (status.reload, status.channel, status.slots) == ("idle", "", 3)
    stood.follow()
    stood.serve()
    status = stood.standing.status(slots=3, load={"calls": 1.0}, surfaces=("embeddings",))
    assert (status.model, status.kind, status.state) == ("m", "tensor", "ready")
    assert (status.version, status.versions) == ("step-0", ("step-0", "step-9"))
    assert (status.generation, status.reload, status.reload_to) == (7, "load", "step-2")
    assert (status.channel, status.refused, status.crowded) == ("stable", ("step-1",), "step-3")
    assert (status.goal, status.goal_generation) == ("2-bbbbbbbb", 7)
    assert (status.load, status.surfaces) == ({"calls": 1.0}, ("embeddings",))


def test_what_it_must_not_serve_is_remembered_until_it_follows(stood: Stood):
    stood.standing.bar("2-b", "it raises")
    said: list[Any] = []
    follower = SimpleNamespace(refuse=lambda *told: said.append(told))
    subscription: Any = SimpleNamespace(follower=follower, start=lambda: said.append("start"))
    stood.standing.follow(subscription)
    assert said == [("2-b", "it raises"), "start"]


def test_who_follows_no_channel_cannot_go_back():
    config = parse('model = "m"\nclass = "a:B"', Path("r.toml"), {}, [])
    standing: Standing[Any] = Standing(
        config, lambda *said: None, lambda: None, busy_s=lambda: 0.0, work="", measure=""
    )
    with pytest.raises(Conflict, match="follows no channel"):
        standing.bar("2-b", "it raises")
