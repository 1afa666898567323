"""Waiting outside the batcher: turns between tenants, bounds, and truthful refusals."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gateway.policy.anteroom import Anteroom


@dataclass(eq=False)
class Item:
    tenant: str = "a"
    rows: int = 1
    priority: int = 0
    deadline: float = float("inf")
    arrived: float = 0.0
    key: int = 0


def room(weights=None) -> Anteroom[Item]:
    return Anteroom((weights or {}).get if weights else lambda tenant: 1.0, lambda item: item.rows)


def enter(anteroom, item, now=0.0, inside=0, rate=0.0, rows=1000):
    return anteroom.enter(item, now, inside=inside, rate=rate, rows=rows)


def test_turns_are_taken_however_many_wait_of_one():
    anteroom = room({"flood": 1.0, "quiet": 1.0, "paying": 2.0})
    for _ in range(300):
        assert enter(anteroom, Item("flood")) == (None, [])
    for _ in range(100):
        enter(anteroom, Item("quiet"))
        enter(anteroom, Item("paying"))
    found = Counter(anteroom.next().item.tenant for _ in range(120))
    assert abs(found["quiet"] - 30) <= 2 and abs(found["paying"] - 60) <= 2


def test_who_cannot_be_served_in_time_is_refused_on_arrival_by_its_own_backlog():
    anteroom = room()
    for _ in range(100):
        enter(anteroom, Item("flood"))
    late = Item("flood", deadline=5.0)
    refusal, out = enter(anteroom, late, inside=20, rate=10.0)
    assert (refusal.reason, refusal.retry_after, out) == ("too_late", 12.0, [])
    # The other tenant does not wait for the flood.
    assert enter(anteroom, Item("quiet", deadline=5.0), inside=20, rate=10.0) == (None, [])


def test_a_full_room_is_left_by_whoever_has_most():
    anteroom = room()
    flood = [Item("flood") for _ in range(10)]
    for item in flood:
        enter(anteroom, item, rows=10)
    quiet = Item("quiet", rows=2)
    assert enter(anteroom, quiet, rows=10) == (None, [flood[9], flood[8]])
    refusal, out = enter(anteroom, Item("flood"), rows=10, rate=2.0)
    assert (refusal.reason, refusal.retry_after, out) == ("queue_full", 5.0, [])
    assert anteroom.rows == 10 and quiet in anteroom and flood[9] not in anteroom


class Room(RuleBasedStateMachine):
    """What enters leaves exactly once, and the rows are those of what is inside."""

    def __init__(self) -> None:
        super().__init__()
        self.room = room()
        self.inside: list[Item] = []

    @rule(
        tenant=st.sampled_from("abc"),
        rows=st.integers(1, 6),
        priority=st.integers(-1, 1),
        deadline=st.sampled_from([0.5, 3.0, float("inf")]),
        rate=st.sampled_from([0.0, 2.0]),
    )
    def enter(self, tenant, rows, priority, deadline, rate):
        item = Item(tenant, rows, priority, deadline)
        refusal, out = enter(self.room, item, inside=2, rate=rate, rows=15)
        for other in out:
            self.inside.remove(other)
        if refusal is None:
            self.inside.append(item)
        else:
            assert item not in self.room

    @rule(comes_back=st.booleans())
    def leave(self, comes_back):
        place = self.room.next()
        assert (place is None) == (not self.inside)
        if place is None:
            return
        assert place.item not in self.room
        if comes_back:
            self.room.put_back(place)
        else:
            self.inside.remove(place.item)

    @rule(data=st.data())
    def discard(self, data):
        if self.inside:
            item = data.draw(st.sampled_from(self.inside))
            assert self.room.discard(item) and not self.room.discard(item)
            self.inside.remove(item)

    @invariant()
    def agree(self):
        assert len(self.room) == len(self.inside)
        assert self.room.rows == sum(item.rows for item in self.inside) <= 15
        assert all(item in self.room for item in self.inside)


TestRoom = Room.TestCase
