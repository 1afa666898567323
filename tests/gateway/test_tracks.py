"""Two tracks while both have replicas and their versions differ; otherwise one."""

from __future__ import annotations

from types import SimpleNamespace

from backends.wire import Status
from gateway.config_canary import CanaryConfig
from gateway.tracks import CANARY, STABLE, Tracks


def replica(name, version, channel="stable"):
    status = Status(model="m", kind="tensor", state="ready", version=version, channel=channel)
    return SimpleNamespace(name=name, status=status)


def tracks(*serving, share=1.0, channel="canary"):
    found = Tracks(CanaryConfig(channel=channel, share=share))
    found.update(serving)
    return found


A, B = replica("a", "1"), replica("b", "1")
C = replica("c", "2", "canary")


def test_those_that_try_a_version_are_apart():
    found = tracks(A, B, C)
    assert found.used and found.place("s", None) == CANARY
    assert found.members(CANARY) == {"c"} and found.members(STABLE) == {"a", "b"}
    assert found.serves("c", CANARY) and not found.serves("a", CANARY)
    assert found.serves("c", None) and found.serves("a", None)


def test_a_pin_is_on_no_track():
    assert tracks(A, C).place("s", "1") is None
    assert tracks(A, C).stands(None, "1") and not tracks(A, C).stands(None, None)


def test_with_equal_versions_there_is_one_track():
    found = tracks(A, replica("c", "1", "canary"))
    assert not found.used and found.place("s", None) is None
    assert found.stands(None, None) and not found.stands(STABLE, None)


def test_a_promoted_version_stays_apart_until_all_others_have_it():
    assert tracks(A, replica("b", "2"), C).members(CANARY) == {"c"}
    assert not tracks(replica("a", "2"), replica("b", "2"), C).used


def test_an_unproven_version_is_better_than_none():
    for found in (tracks(C), tracks(A, B), tracks(A, C, channel=None)):
        assert not found.used and found.place("s", None) is None
