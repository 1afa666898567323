"""Whatever replicas do, one swaps at a time, one tries what is unproven, and all arrive."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.rolling import DEATHS, PATIENCE_S, TRIAL_S, Order, Rolling, View

OLD, NEW = "1-a", "2-b"


def view(version=OLD, reload="idle", reload_to="", channel="stable", refused=(), reason=""):
    return View(
        version=version,
        reload=reload,
        reload_to=reload_to,
        channel=channel,
        refused=refused,
        reason=reason,
    )


WAITS = view(reload="ready", reload_to=NEW)
PROBATION = view(NEW, "probation", NEW)


def settled(*names, now=0.0, **options):
    """Replicas that have served OLD for long."""
    rolling = Rolling(**options)
    for name in names:
        rolling.heard(name, view(""), now - 100)
        rolling.heard(name, view(), now - 100)
    rolling.decide(now)
    return rolling


def orders(rolling, now):
    return rolling.decide(now)[0]


def test_one_swaps_first_and_the_others_follow_once_it_has_passed_its_probation():
    rolling = settled("a", "b", "c")
    for name in "bca":
        rolling.heard(name, WAITS, 1)
    assert orders(rolling, 1) == [Order("a", "swap", NEW)]
    assert orders(rolling, 1.1) == []
    rolling.heard("a", view(reload="swap", reload_to=NEW), 1.2)
    rolling.heard("a", PROBATION, 1.3)
    assert orders(rolling, 11) == []
    (proven,) = rolling.heard("a", view(NEW), 11.3)
    assert (proven.kind, proven.version) == ("proven", NEW)
    assert orders(rolling, 11.3) == [Order("b", "swap", NEW)]
    assert orders(rolling, 11.3) == []
    # The probation of those that follow holds up nobody.
    rolling.heard("b", PROBATION, 11.4)
    assert orders(rolling, 11.4) == [Order("c", "swap", NEW)]


def test_who_has_waited_longest_is_first():
    rolling = settled("a", "b")
    rolling.heard("b", WAITS, 1)
    rolling.heard("a", WAITS, 2)
    assert orders(rolling, 3) == [Order("b", "swap", NEW)]


@pytest.mark.parametrize("told", [view(reload="swap", reload_to=NEW), WAITS])
def test_one_that_fails_at_once_is_found_out_even_if_its_probation_was_not_heard_of(told):
    rolling = settled("a", "b")
    rolling.heard("a", WAITS, 1)
    rolling.heard("b", WAITS, 1)
    assert orders(rolling, 1) == [Order("a", "swap", NEW)]
    rolling.heard("a", told, 1.1)
    # It has swapped, raised and turned back between two of its words.
    (finding,) = rolling.heard("a", view(NEW, "swap", OLD, refused=(NEW,), reason="raises"), 1.2)
    assert finding.text == f"{NEW} is refused everywhere: a went back: raises"
    rolling.heard("a", view(refused=(NEW,), reason="raises"), 1.3)
    assert [order.op for order in orders(rolling, 1.3)] == ["refuse"]


def test_without_probation_the_next_follows_the_swap():
    rolling = settled("a", "b", probation=False)
    rolling.heard("a", WAITS, 1)
    rolling.heard("b", WAITS, 1)
    assert orders(rolling, 1) == [Order("a", "swap", NEW)]
    rolling.heard("a", PROBATION, 1.1)
    assert orders(rolling, 1.1) == [Order("b", "swap", NEW)]


def test_a_version_that_did_worse_is_refused_everywhere():
    rolling = settled("a", "b", "c")
    for name in "abc":
        rolling.heard(name, WAITS, 1)
    orders(rolling, 1)
    rolling.heard("a", PROBATION, 1.1)
    back = view(NEW, "swap", OLD, refused=(NEW,), reason="2-b: it raises")
    (finding,) = rolling.heard("a", back, 2)
    assert finding.kind == "refused" and "it raises" in finding.text
    rolling.heard("a", view(refused=(NEW,)), 2.1)
    told = orders(rolling, 2.1)
    assert [(o.replica, o.op, o.version) for o in told] == [
        ("b", "refuse", NEW),
        ("c", "refuse", NEW),
    ]
    assert orders(rolling, 2.2) == []
    rolling.heard("b", view(refused=(NEW,)), 2.3)
    rolling.heard("c", view(reload="load", reload_to="3-c", refused=(NEW,)), 2.3)
    assert orders(rolling, 2.3) == []
    assert list(rolling.bad) == [NEW]
    rolling.forgive()
    rolling.heard("b", WAITS, 5)
    assert orders(rolling, 5) == [Order("b", "swap", NEW)]


def test_a_probation_that_was_over_before_it_was_heard_still_counts():
    rolling = settled("a", "b")
    rolling.heard("a", WAITS, 1)
    rolling.heard("b", WAITS, 1)
    orders(rolling, 1)
    rolling.heard("a", view(refused=(NEW,), reason="slow"), 2)
    assert [order.op for order in orders(rolling, 2)] == ["refuse"]


def test_a_load_that_fails_at_one_is_no_verdict_for_the_others():
    rolling = settled("a", "b")
    rolling.heard("a", view(reload="verify", reload_to=NEW), 1)
    (finding,) = rolling.heard("a", view(refused=(NEW,), reason="no such class"), 1.1)
    assert finding.kind == "refused" and "no such class" in finding.text
    rolling.heard("b", WAITS, 2)
    assert orders(rolling, 2) == [Order("b", "swap", NEW)]


def test_one_that_was_told_and_does_not_move_holds_up_the_others_no_longer_than_its_patience():
    rolling = settled("a", "b")
    rolling.heard("a", WAITS, 1)
    rolling.heard("b", WAITS, 2)
    assert orders(rolling, 2) == [Order("a", "swap", NEW)]
    assert orders(rolling, 1.9 + PATIENCE_S) == []
    assert orders(rolling, 2 + PATIENCE_S) == [Order("b", "swap", NEW)]
    rolling.missed("b")
    assert orders(rolling, 2.1 + PATIENCE_S)[0].op == "swap"


def test_one_that_dies_on_probation_is_followed_by_its_own_next_life_on_trial():
    rolling = settled("a", "b")
    rolling.heard("a", WAITS, 1)
    rolling.heard("b", WAITS, 1)
    orders(rolling, 1)
    rolling.heard("a", PROBATION, 1.1)
    (died,) = rolling.gone("a", 2)
    assert died.kind == "died"
    # Nobody has tried it to the end: b may, and a comes back with it by itself.
    rolling.heard("a", view(""), 2.1)
    rolling.heard("a", view(NEW), 3)
    assert orders(rolling, 3.1) == []
    found, findings = rolling.decide(3 + TRIAL_S)
    assert found == [Order("b", "swap", NEW)] and findings[0].kind == "proven"


def test_a_version_on_which_replicas_die_again_and_again_is_refused():
    rolling = settled("a", "b")
    rolling.heard("b", WAITS, 1)
    for life in range(DEATHS):
        rolling.gone("a", life)
        rolling.heard("a", view(""), life + 0.1)
        rolling.heard("a", view("", "load", NEW), life + 0.2)
        rolling.heard("a", view(NEW), life + 0.3)
    *_, refused = rolling.gone("a", 9)
    assert refused.kind == "refused"
    rolling.heard("a", view("", "load", NEW), 9.1)
    assert [(o.replica, o.op) for o in orders(rolling, 9.1)] == [("b", "refuse"), ("a", "refuse")]


def test_who_comes_up_with_what_was_rolled_back_from_leaves_it():
    rolling = settled("a", "b")
    rolling.heard("a", view(NEW), 1)
    (finding,) = rolling.recall("m", NEW, "by an operator")
    assert finding.text == f"{NEW} is refused everywhere: by an operator"
    assert orders(rolling, 1) == [Order("a", "rollback", NEW, "by an operator")]
    # It said that it cannot: it is asked again, but not at once.
    rolling.missed("a", refused=True)
    assert orders(rolling, 2) == []
    assert [order.op for order in orders(rolling, 1 + PATIENCE_S)] == ["rollback"]
    rolling.missed("a")
    assert [order.op for order in orders(rolling, 1 + PATIENCE_S)] == ["rollback"]
    rolling.heard("a", view(NEW, "load", OLD, refused=(NEW,)), 3 + PATIENCE_S)
    rolling.heard("b", view(reload="load", reload_to=NEW), 3 + PATIENCE_S)
    assert orders(rolling, 4 + PATIENCE_S) == [Order("b", "refuse", NEW, "by an operator")]
    rolling.forgive()
    rolling.heard("c", view(NEW), 5 + PATIENCE_S)
    assert orders(rolling, 6 + PATIENCE_S) == []


def test_channels_are_tried_apart_but_swap_one_at_a_time():
    rolling = settled("a", "b")
    canary = view("0-x", channel="canary")
    rolling.heard("c", canary, 0)
    rolling.heard("c", view("0-x", "ready", "9-z", channel="canary"), 1)
    rolling.heard("a", WAITS, 2)
    assert orders(rolling, 2) == [Order("c", "swap", "9-z")]
    rolling.heard("c", view("9-z", "probation", "9-z", channel="canary"), 2.1)
    assert orders(rolling, 2.1) == [Order("a", "swap", NEW)]


def test_skew_is_counted_between_replicas_of_one_channel():
    rolling = settled("a", "b")
    rolling.heard("c", view("9-z", channel="canary"), 0)
    assert rolling.skew_s(5) == 0
    rolling.heard("a", view(NEW), 5)
    assert rolling.skew_s(8) == 3 and rolling.versions() == {OLD: 1, NEW: 1, "9-z": 1}
    rolling.heard("b", view(NEW), 9)
    assert rolling.skew_s(10) == 0


class Fleet:
    """Replicas that follow a channel as `backends.reload` does, a step whenever the test wants."""

    def __init__(self, names):
        self.rolling, self.now, self.newest = Rolling(), 0.0, 1
        self.views = {name: view("") for name in names}
        self.swaps = {}  # when each was told to swap
        self.tell_all()

    def tell_all(self):
        for name, said in self.views.items():
            if said is not None:
                self.rolling.heard(name, said, self.now)
        told, _ = self.rolling.decide(self.now)
        assert sum(order.op == "swap" for order in told) <= 1
        for order in told:
            self.obey(order)

    def obey(self, order):
        said = self.views[order.replica]
        if order.op == "refuse":
            refused = (*said.refused, order.version)
            self.views[order.replica] = view(said.version, refused=refused)
        elif said is not None and said.reload_to == order.version:
            others = [v for n, v in self.views.items() if n != order.replica and v is not None]
            swapping = [n for n, v in self.views.items() if v is not None and v.reload == "swap"]
            # One that hangs in its swap holds up the others only so long.
            fresh = [n for n in swapping if self.now - self.swaps[n] < PATIENCE_S]
            assert not fresh, "two swap at a time"
            self.swaps[order.replica] = self.now
            proven = self.rolling._proven
            tried = [v for v in others if v.reload == "probation" and v.version not in proven]
            assert order.version in proven or not tried, "two unproven versions are tried at a time"
            self.views[order.replica] = view(
                said.version, "swap", order.version, refused=said.refused
            )

    def move(self, name, good):
        said, wanted = self.views[name], f"{self.newest}-v"
        if said is None:
            self.views[name] = view("")
        elif not said.version:
            self.views[name] = view(wanted)
        elif said.reload == "swap":
            self.views[name] = view(
                said.reload_to, "probation", said.reload_to, refused=said.refused
            )
        elif said.reload == "probation":
            refused = said.refused if good else (*said.refused, said.version)
            version = said.version if good else "0-v"
            self.views[name] = view(version, refused=refused)
        elif wanted not in said.refused and wanted != said.version:
            self.views[name] = view(said.version, "ready", wanted, refused=said.refused)
        self.tell_all()

    def die(self, name):
        self.views[name] = None
        self.rolling.gone(name, self.now)


moves = st.lists(
    st.tuples(
        st.sampled_from("abc"), st.sampled_from(["good", "good", "bad", "die", "publish", "wait"])
    ),
    max_size=80,
)


@given(moves)
def test_whatever_happens_one_swaps_at_a_time_and_all_arrive(moves):
    fleet = Fleet("abc")
    for name, what in moves:
        fleet.now += 0.5
        if what == "die":
            fleet.die(name)
        elif what == "publish":
            fleet.newest += 1
        elif what == "wait":
            fleet.now += PATIENCE_S
            fleet.tell_all()
        else:
            fleet.move(name, what == "good")
    fleet.newest += 1
    for _ in range(12):  # from here on, nothing fails
        for name in "abc":
            fleet.now += 4.0
            fleet.move(name, True)
    assert {said.version for said in fleet.views.values()} == {f"{fleet.newest}-v"}
    assert fleet.rolling.skew_s(fleet.now) == 0 and fleet.rolling.waiting == []
