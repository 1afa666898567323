"""The reload's decisions: whatever happens, one load at a time, and never nothing where there was
something; what is wanted last is served in the end, if it can be."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.reload import REMEMBERED, Reload
from backends.reload_terms import (
    LOADING,
    Begin,
    Cancel,
    Commit,
    Failure,
    Note,
    Quarantine,
    Release,
    Stage,
    Swap,
    Target,
)


def target(step, generation=None):
    return Target(step, f"{step:032x}", generation if generation is not None else step)


A, B, C = target(1), target(2), target(3)


def deeds(actions):
    return [action for action in actions if not isinstance(action, Note)]


def serving(*targets, keep=1):
    """A machine that committed to targets[-1] after the others."""
    reload = Reload(probation_s=10, keep=keep)
    for number, goal in enumerate(targets):
        wanted = [*reversed(targets[: number + 1])]
        assert deeds(reload.want(wanted, 0)) == [Begin(goal)]
        assert isinstance(deeds(reload.loaded(goal, 0))[0], Swap)
        reload.swapped(goal, 0)
        reload.tick(10)
    assert reload.stage is Stage.IDLE and reload.serving == targets[-1]
    return reload


def on_probation():
    reload = serving(A)
    reload.want([B, A], 100)
    reload.loaded(B, 100)
    reload.swapped(B, 100)
    assert reload.stage is Stage.PROBATION
    return reload


def test_the_first_version_is_served_without_probation():
    reload = Reload(probation_s=10)
    assert deeds(reload.want([A], 0)) == [Begin(A)]
    for stage in LOADING:
        reload.staged(A, stage)
        assert reload.stage is stage
    assert deeds(reload.loaded(A, 1)) == [Swap(A, None)]
    assert reload.stage is Stage.SWAP and reload.serving is None
    assert deeds(reload.swapped(A, 1)) == [Commit(A)]
    assert (reload.stage, reload.serving, reload.generation) == (Stage.IDLE, A, 1)


def test_the_old_version_is_kept_through_probation_and_then_released():
    reload = on_probation()
    assert reload.fallback == A and reload.held == [A, B]
    assert deeds(reload.tick(109.9)) == []
    assert deeds(reload.tick(110)) == [Commit(B), Release(A)]
    assert reload.held == [B]


@pytest.mark.parametrize("good", [True, False], ids=["proven", "refused"])
def test_what_is_known_of_versions_is_bounded_and_lasts_while_they_are_wanted(good):
    reload = serving(A)
    known = reload._proven if good else reload._refused
    for step in range(2, 5 * REMEMBERED):
        goal = target(step)
        # The channel names B all the time, as it does where it goes back to it again and again.
        reload.want([goal, B, A], 0)
        if good or goal == B:
            reload.loaded(goal, 0)
            reload.swapped(goal, 0)
            reload.tick(10) if good else reload.regressed("why", 0)
            if not good:
                reload.swapped(A, 0)
        else:
            reload.failed(goal, Failure.REFUSED, "why", 0)
    assert B.hash in known and len(known) <= REMEMBERED + 4
    assert target(2 * REMEMBERED).hash not in known
    assert target(5 * REMEMBERED - 1).hash in known


def test_kept_versions_are_live_and_swapped_to_without_a_load():
    reload = serving(A, B, keep=2)
    assert reload.held == [A, B]
    back = target(1, generation=3)
    assert deeds(reload.want([back, B, A], 50)) == [Swap(A, None)]
    assert deeds(reload.swapped(A, 50)) == [Commit(A)]
    assert reload.generation == 3
    assert reload.held == [B, A]


def test_a_regression_goes_back_at_once_and_the_bad_one_is_not_tried_again():
    reload = on_probation()
    assert deeds(reload.regressed("it raises", 101)) == [Swap(A, None)]
    assert deeds(reload.swapped(A, 101)) == [Commit(A), Release(B)]
    assert reload.serving == A and reload.problem == f"{B.version}: it raises"
    assert deeds(reload.want([B, A], 200)) == []
    assert deeds(reload.want([C, B, A], 201)) == [Begin(C)]


def test_a_regression_after_probation_is_none():
    reload = serving(A, B)
    assert reload.regressed("late", 500) == []


def test_an_operator_may_have_the_refused_tried_again():
    reload = on_probation()
    reload.regressed("it raises", 101)
    reload.swapped(A, 101)
    assert deeds(reload.retry(300)) == [Begin(B)]


def test_a_corrupt_version_is_quarantined_and_the_old_one_stays():
    reload = serving(A)
    reload.want([B, A], 1)
    assert deeds(reload.failed(B, Failure.CORRUPT, "xxh3", 1)) == [Quarantine(B, "xxh3")]
    assert reload.serving == A and reload.problem == f"{B.version}: xxh3"
    assert deeds(reload.tick(1000)) == []
    assert not reload.stuck


def test_a_starting_replica_takes_the_newest_that_is_good():
    reload = Reload(probation_s=10)
    assert deeds(reload.want([C, B, A], 0)) == [Begin(C)]
    assert deeds(reload.failed(C, Failure.CORRUPT, "x", 0)) == [Quarantine(C, "x"), Begin(B)]
    assert deeds(reload.failed(B, Failure.REFUSED, "x", 0)) == [Begin(A)]
    assert deeds(reload.failed(A, Failure.REFUSED, "x", 0)) == []
    assert reload.stuck
    assert deeds(reload.want([target(4), C], 1)) == [Begin(target(4))]
    assert not reload.stuck


def test_while_something_good_is_served_no_older_one_takes_its_place():
    reload = serving(B)
    reload.want([C, A], 1)
    assert deeds(reload.failed(C, Failure.REFUSED, "x", 1)) == []
    assert reload.serving == B


def test_the_latest_wins_and_there_is_one_load_at_a_time():
    reload = serving(A)
    assert deeds(reload.want([B, A], 1)) == [Begin(B)]
    assert deeds(reload.want([C, B, A], 2)) == [Cancel(B)]
    assert deeds(reload.want([C, B, A], 3)) == []
    assert deeds(reload.failed(B, Failure.CANCELLED, "newer", 4)) == [Begin(C)]


def test_a_load_that_finished_before_its_cancel_is_let_go():
    reload = serving(A)
    reload.want([B, A], 1)
    reload.want([C, B, A], 2)
    assert deeds(reload.loaded(B, 3)) == [Release(B), Begin(C)]


def test_a_channel_that_goes_back_cancels_the_load_and_nothing_more():
    reload = serving(A)
    reload.want([B, A], 1)
    assert deeds(reload.want([target(1, 3), B, A], 2)) == [Cancel(B)]
    assert deeds(reload.failed(B, Failure.CANCELLED, "", 3)) == []
    assert reload.serving == A and reload.generation == 3


def test_a_channel_that_goes_back_in_probation_swaps_back_at_once():
    reload = on_probation()
    assert deeds(reload.want([target(1, 3), B, A], 105)) == [Swap(A, None)]
    assert deeds(reload.swapped(A, 105)) == [Commit(A), Release(B)]


def test_a_newer_version_waits_for_the_end_of_probation():
    reload = on_probation()
    assert deeds(reload.want([C, B, A], 105)) == []
    assert deeds(reload.tick(110)) == [Commit(B), Release(A), Begin(C)]


def test_passing_troubles_are_tried_again_less_and_less_often():
    reload, now, pauses = serving(A), 1.0, []
    assert deeds(reload.want([B, A], now)) == [Begin(B)]
    for _ in range(9):
        reload.failed(B, Failure.TRANSIENT, "disk full", now)
        began = now
        while deeds(reload.tick(now)) != [Begin(B)]:
            now += 0.25
        pauses.append(now - began)
    assert pauses == sorted(pauses) and pauses[0] == 0.5 and pauses[-1] == 30.0
    reload.failed(B, Failure.TRANSIENT, "disk full", now)
    assert deeds(reload.want([C, B, A], now)) == [Begin(C)]


def test_an_operator_rolls_back_to_where_the_channel_was():
    reload = serving(A, B)
    assert deeds(reload.give_up(B.version, "operator", 50)) == [Begin(A)]
    assert reload.give_up(B.version, "operator", 50) == [], "said twice"
    assert reload.serving == B
    assert deeds(reload.loaded(A, 51)) == [Swap(A, None)]
    assert deeds(reload.swapped(A, 51)) == [Commit(A), Release(B)]


def test_an_operator_rolls_back_in_probation():
    assert deeds(on_probation().give_up(B.version, "operator", 101)) == [Swap(A, None)]


def test_there_must_be_something_to_go_back_to():
    reload = serving(A)
    with pytest.raises(ValueError, match="nowhere else"):
        reload.give_up(A.version, "operator", 1)
    assert deeds(reload.tick(2)) == [] and reload.refused == []
    reload = Reload(probation_s=1)
    assert deeds(reload.want([A], 0)) == [Begin(A)]
    with pytest.raises(ValueError, match="nowhere else"):
        reload.give_up(A.version, "operator", 1)
    assert deeds(reload.loaded(A, 2)) == [Swap(A, None)]


def test_who_has_not_seen_it_yet_goes_no_further_back_than_the_others():
    reload = serving(A, B)
    assert reload.give_up(C.version, "operator", 50) == []
    assert deeds(reload.want([C, B, A], 51)) == []
    assert reload.serving == B and reload.refused == [C]
    # Nor does one that has not even seen where the others go back to.
    late = serving(A)
    late.give_up(C.version, "operator", 50)
    assert deeds(late.want([C, B, A], 51)) == [Begin(B)]
    assert deeds(late.retry(52)) == [Cancel(B)], "an operator has it tried again"


def test_what_is_barred_is_served_where_there_is_nothing_else():
    reload = Reload(probation_s=10)
    reload.give_up(A.version, "operator", 0)
    assert deeds(reload.want([A], 1)) == [Begin(A)]
    reload.failed(A, Failure.TRANSIENT, "disk", 2)
    assert deeds(reload.want([B, A], 3)) == [Begin(B)]
    assert reload.refused == [A]


def test_an_operator_rolls_back_while_it_is_loaded():
    reload = serving(A, B)
    reload.want([C, B, A], 50)
    assert deeds(reload.give_up(C.version, "operator", 51)) == [Cancel(C)]
    assert deeds(reload.failed(C, Failure.CANCELLED, "", 52)) == []
    assert reload.serving == B
    starting = Reload(probation_s=10)
    starting.want([B, A], 0)
    assert deeds(starting.give_up(B.version, "operator", 1)) == [Cancel(B)]
    assert deeds(starting.failed(B, Failure.CANCELLED, "", 2)) == [Begin(A)]


def test_an_operator_rolls_back_from_what_serves_while_another_is_loaded():
    reload = serving(A, B)
    reload.want([C, B, A], 50)
    assert deeds(reload.give_up(B.version, "operator", 51)) == [], "it goes to C already"
    assert deeds(reload.loaded(C, 52)) == [Swap(C, None)]


def test_an_operator_rolls_back_twice_before_the_first_is_done():
    reload = serving(A, B, C)
    assert deeds(reload.give_up(C.version, "operator", 50)) == [Begin(B)]
    assert deeds(reload.give_up(B.version, "operator", 51)) == [Cancel(B)]
    assert deeds(reload.failed(B, Failure.CANCELLED, "", 52)) == [Begin(A)]
    with pytest.raises(ValueError, match="nowhere else"):
        reload.give_up(A.version, "operator", 53)
    assert deeds(reload.loaded(A, 54)) == [Swap(A, None)]


def test_an_operator_rolls_back_while_it_is_swapped_in():
    reload = serving(A)
    reload.want([B, A], 50)
    assert deeds(reload.loaded(B, 50)) == [Swap(B, A)]
    assert deeds(reload.give_up(B.version, "operator", 51)) == []
    assert deeds(reload.swapped(B, 52)) == [Swap(A, None)]
    assert deeds(reload.swapped(A, 53)) == [Commit(A), Release(B)]
    first = Reload(probation_s=10)
    first.want([B, A], 0)
    first.loaded(B, 0)
    first.give_up(B.version, "operator", 1)
    assert deeds(first.swapped(B, 2)) == [Commit(B), Begin(A)]
    assert B.hash not in first._proven


def test_without_probation_a_swap_commits():
    reload = Reload(probation_s=0)
    for goal in (A, B):
        reload.want([goal], 0)
        assert deeds(reload.loaded(goal, 0)) == [Swap(goal, None)]
        done = deeds(reload.swapped(goal, 0))
    assert done == [Commit(B), Release(A)]


def steered():
    """A, with B waiting for its turn."""
    reload = Reload(probation_s=10, keep=2, ask_s=3)
    reload.steer(0)
    reload.want([A], 0)
    assert deeds(reload.loaded(A, 0)) == [Swap(A, None)], "nothing served: nobody is asked"
    reload.swapped(A, 0)
    reload.want([B, A], 1)
    assert deeds(reload.loaded(B, 1)) == []
    assert reload.stage is Stage.READY and reload.serving == A and reload.target == B
    return reload


def test_a_loaded_version_waits_for_its_turn():
    reload = steered()
    assert deeds(reload.tick(2)) == []
    assert deeds(reload.allow(B.version)) == [Swap(B, A)]
    reload.swapped(B, 2)
    assert reload.stage is Stage.PROBATION


def test_a_gateway_that_falls_silent_is_not_waited_for():
    reload = steered()
    reload.steer(2)
    assert deeds(reload.tick(4.9)) == []
    alone = reload.tick(5)
    assert deeds(alone) == [Swap(B, A)] and alone[0] == Note("reload.alone", B, "no gateway")


def test_only_what_waits_can_be_allowed():
    reload = steered()
    with pytest.raises(ValueError, match=C.version):
        reload.allow(C.version)
    reload.allow(B.version)
    with pytest.raises(ValueError, match="does not wait"):
        reload.allow(B.version)


def test_what_waits_gives_way_to_what_is_newer():
    reload = steered()
    assert deeds(reload.want([C, B, A], 2)) == [Release(B), Begin(C)]
    assert reload.held == [A]


def test_what_waits_is_let_go_when_the_channel_goes_back():
    reload = steered()
    assert deeds(reload.want([target(1, 3), B, A], 2)) == [Release(B)]
    assert reload.stage is Stage.IDLE and reload.serving == A


def test_a_kept_version_that_waits_stays_when_it_gives_way():
    reload = steered()
    reload.allow(B.version)
    reload.swapped(B, 2)
    reload.tick(12)
    reload.steer(12)
    assert deeds(reload.want([target(1, 3), B, A], 12)) == []
    assert reload.stage is Stage.READY and reload.target == A
    assert deeds(reload.want([target(2, 4), B, A], 13)) == []
    assert reload.stage is Stage.IDLE and reload.held == [A, B]


def test_a_regression_waits_for_nobody():
    reload = steered()
    reload.allow(B.version)
    reload.swapped(B, 2)
    reload.steer(3)
    assert deeds(reload.regressed("slow", 3)) == [Swap(A, None)]


def test_what_did_worse_elsewhere_is_refused_wherever_it_has_got_to():
    reload = steered()
    assert deeds(reload.refuse(B.version, "slow", 2)) == [Release(B)]
    assert reload.refused == [B] and reload.problem == f"{B.version}: slow"
    assert deeds(reload.retry(3)) == [Begin(B)]
    assert deeds(reload.refuse(B.version, "slow", 4)) == [Cancel(B)]
    reload = steered()
    reload.allow(B.version)
    reload.swapped(B, 2)
    assert deeds(reload.refuse(B.version, "slow", 3)) == [Swap(A, None)]


def test_what_is_in_service_is_not_refused():
    reload = serving(A, B)
    assert reload.refuse(B.version, "slow", 50) == [] and reload.refused == []
    assert reload.refuse(C.version, "slow", 50) == [] and reload.refused == []
    assert deeds(reload.want([C, B, A], 51)) == [] and reload.refused == [C]


def test_an_operator_who_rolls_back_refuses_what_waits():
    reload = steered()
    assert deeds(reload.give_up(B.version, "operator", 2)) == [Release(B)]
    assert reload.serving == A and reload.refused == [B]


def test_what_waits_takes_the_place_of_what_is_rolled_back_at_once():
    assert deeds(steered().give_up(A.version, "operator", 2)) == [Swap(B, None)]


def test_a_replica_that_swaps_by_itself_is_steered_by_nobody():
    reload = serving(A)
    reload.steer(1)
    reload.want([B, A], 1)
    assert deeds(reload.loaded(B, 1)) == [Swap(B, A)]


class Shell:
    """Does what the machine says, a step whenever the test wants, and checks it."""

    def __init__(self, keep):
        self.reload = Reload(probation_s=10, keep=keep, ask_s=3)
        self.loading = self.swapping = None
        self.live, self.refused, self.now = set(), set(), 0.0
        self.ever_served = False

    def do(self, actions):
        for action in actions:
            match action:
                case Begin(goal):
                    assert self.loading is None, "two loads at a time"
                    assert goal.hash not in self.refused, "a refused hash was tried again"
                    assert goal.hash not in self.live, "loaded twice"
                    self.loading = goal
                case Cancel(goal):
                    assert self.loading == goal
                case Swap(goal, fallback):
                    assert self.swapping is None
                    assert goal.hash in self.live
                    assert fallback is None or fallback.hash in self.live
                    self.swapping = goal
                case Release(goal):
                    assert self.reload.serving is None or goal.hash != self.reload.serving.hash
                    self.live.remove(goal.hash)
        if self.ever_served:
            assert self.reload.serving.hash in self.live, "what serves was given up"

    def step(self, outcome):
        """The background does something."""
        if self.swapping is not None:
            goal, self.swapping = self.swapping, None
            self.ever_served = True
            self.do(self.reload.swapped(goal, self.now))
        elif self.loading is not None:
            goal, self.loading = self.loading, None
            if outcome is None:
                self.live.add(goal.hash)
                self.do(self.reload.loaded(goal, self.now))
            else:
                if outcome in (Failure.CORRUPT, Failure.REFUSED):
                    self.refused.add(goal.hash)
                self.do(self.reload.failed(goal, outcome, "why", self.now))


events = st.lists(
    st.one_of(
        st.tuples(st.just("want"), st.integers(1, 5)),
        st.tuples(st.just("step"), st.sampled_from([None, None, *Failure])),
        st.tuples(st.just("wait"), st.sampled_from([0.3, 5.0, 40.0])),
        st.tuples(st.just("regress"), st.none()),
        st.tuples(st.just("give_up"), st.integers(1, 5)),
        st.tuples(st.just("steer"), st.none()),
        st.tuples(st.just("allow"), st.none()),
        st.tuples(st.just("refuse"), st.integers(1, 5)),
    ),
    max_size=60,
)


@given(events, st.integers(1, 3))
def test_whatever_happens_the_invariants_hold_and_the_wanted_is_served(events, keep):
    shell, history = Shell(keep), []
    for generation, (kind, value) in enumerate(events, 1):
        if kind == "want":
            history.insert(0, target(value, generation))
            shell.do(shell.reload.want(history, shell.now))
        elif kind == "step":
            shell.step(value)
        elif kind == "wait":
            shell.now += value
            shell.do(shell.reload.tick(shell.now))
        elif kind == "regress":
            shell.do(shell.reload.regressed("why", shell.now))
        elif kind == "steer":
            shell.do(shell.reload.steer(shell.now))
        elif kind == "allow":
            if shell.reload.stage is Stage.READY:
                shell.do(shell.reload.allow(shell.reload.target.version))
        elif kind == "refuse":
            shell.do(shell.reload.refuse(target(value).version, "why", shell.now))
        else:
            try:
                actions = shell.reload.give_up(target(value).version, "why", shell.now)
            except ValueError:
                continue
            shell.do(actions)
        shell.refused |= shell.reload._refused.keys()
    for _ in range(40):  # from here on, nothing fails
        shell.step(None)
        shell.now += 50
        shell.do(shell.reload.tick(shell.now))
    assert shell.reload.stage is Stage.IDLE
    assert len(shell.reload.held) <= keep
    assert {live.hash for live in shell.reload.held} == shell.live
    if history and history[0].hash not in shell.refused:
        assert shell.reload.serving.hash == history[0].hash
        assert shell.reload.generation == history[0].generation


class Fleet:
    """Replicas of one channel that see it at different times, and operators who roll back from
    what the one serves that has seen most."""

    def __init__(self, names):
        self.shells, self.history, self.orders = [Shell(1) for _ in range(names)], [], []
        for _ in range(2):
            self.publish()
            for at, shell in enumerate(self.shells):
                self.look(at)
                shell.step(None)
                shell.step(None)
                shell.now += 10
                shell.do(shell.reload.tick(shell.now))

    def publish(self):
        self.history.insert(0, target(len(self.history) + 1))

    def look(self, at):
        shell = self.shells[at % len(self.shells)]
        shell.do(shell.reload.want(list(self.history), shell.now))

    def roll_back(self):
        goals = [shell.reload.goal for shell in self.shells]
        bad = max(goals, key=lambda goal: goal.generation).version
        told = [shell for shell in self.shells if shell.reload.goal.version == bad]
        try:
            for shell in told:
                shell.do(shell.reload.give_up(bad, "why", shell.now))
        except ValueError:
            return  # nowhere to go back to, which all that know it say
        self.orders.append((bad, [shell for shell in self.shells if shell not in told]))

    def deliver(self, at):
        """An order reaches another one, in whatever order."""
        bad, left = self.orders[at % len(self.orders)]
        shell = left.pop()
        with suppress(ValueError):
            shell.do(shell.reload.give_up(bad, "why", shell.now))
        self.orders = [order for order in self.orders if order[1]]


moves = st.lists(
    st.tuples(
        st.sampled_from(["publish", "look", "look", "step", "step", "wait", "back", "deliver"]),
        st.integers(0, 5),
    ),
    max_size=80,
)


@given(moves)
def test_all_end_where_the_operators_went_back_to_whatever_they_had_seen(moves):
    fleet = Fleet(3)
    for kind, at in moves:
        shell = fleet.shells[at % 3]
        if kind == "publish":
            fleet.publish()
        elif kind == "look":
            fleet.look(at)
        elif kind == "step":
            shell.step(None)
        elif kind == "wait":
            shell.now += 5
            shell.do(shell.reload.tick(shell.now))
        elif kind == "back":
            fleet.roll_back()
        fleet.orders = [order for order in fleet.orders if order[1]]
        if kind == "deliver" and fleet.orders:
            fleet.deliver(at)
    while fleet.orders:
        fleet.deliver(0)
    for at in range(3):
        fleet.look(at)
    for shell in fleet.shells:
        for _ in range(40):
            shell.step(None)
            shell.now += 50
            shell.do(shell.reload.tick(shell.now))
    assert len({shell.reload.serving for shell in fleet.shells}) == 1
