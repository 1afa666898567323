"""Lanes and their index against the plainest thing that does the same: a sorted list."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.policy.batch_index import LaneIndex
from gateway.policy.batch_lane import Lane


class Model:
    def __init__(self) -> None:
        self.entries: list[tuple[float, int, str, int]] = []  # due, order, item, size
        self.first = 0
        self.last = 0

    def append(self, item, due, size):
        self.last += 1
        self.entries.append((due, self.last, item, size))
        self.entries.sort()

    def prepend(self, item, due, size):
        self.first -= 1
        self.entries.append((due, self.first, item, size))
        self.entries.sort()


@given(st.integers(0, 2**32), st.sampled_from((1, 3)))
@settings(max_examples=80, deadline=None)
def test_a_lane_behaves_like_a_sorted_list(seed, largest):
    rng = random.Random(seed)
    lane, model = Lane("k", 0, False), Model()
    number = 0
    for _ in range(400):
        action = rng.random()
        entries = model.entries
        if action < 0.55:
            number += 1
            item, size = f"item {number}", rng.randint(1, largest)
            due = number / 10 if rng.random() < 0.8 else rng.randrange(20) / 2
            soonest = not entries or due < entries[0][0]
            if rng.random() < 0.9:
                assert lane.append(item, due, size) is soonest
                model.append(item, due, size)
            else:
                soonest = not entries or due <= entries[0][0]
                assert lane.prepend(item, due, size) is soonest
                model.prepend(item, due, size)
        elif action < 0.75 and entries:
            due, _, item, _ = entry = rng.choice(entries)
            assert lane.remove(item, due)
            assert not lane.remove(item, due)
            entries.remove(entry)
        elif action < 0.9 and entries:
            skip = rng.randint(0, min(3, len(entries) - 1))
            count = rng.randint(0, len(entries) - skip)
            taken = lane.take_from(skip, count)
            assert taken == [item for _, _, item, _ in entries[skip : skip + count]]
            del entries[skip : skip + count]
        elif entries:
            due = rng.choice(entries)[0]
            assert lane.before(due) == sum(entry[0] < due for entry in entries)
            places = rng.randint(1, len(entries))
            dues, sizes, start = lane.front(places)
            assert dues[start : start + places] == [entry[0] for entry in entries[:places]]
            assert sizes[start : start + places] == [entry[3] for entry in entries[:places]]
        assert lane.count == len(model.entries)
        assert lane.size == sum(entry[3] for entry in model.entries)
        if model.entries:
            assert lane.due == model.entries[0][0]
            assert lane.soonest == model.entries[0][2]
            assert lane.last == max(model.entries)[2]


def test_a_lane_keeps_nothing_of_what_has_left_it():
    lane = Lane("k", 0, False)
    for number in range(10_000):
        lane.append(object(), float(number), 1)
        if number % 2:
            lane.remove(lane.last, float(number))
        else:
            lane.take(1)
    assert lane.count == 0 and lane.front(1)[0] == []
    for number in range(10_000):
        lane.append(object(), float(number), 1)
        if number >= 10:
            lane.take(1)
    assert lane.count == 10 and len(lane.front(1)[0]) < 1000


@given(st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_the_index_leads_with_priority_then_due_time(seed):
    rng = random.Random(seed)
    index: LaneIndex[int] = LaneIndex()
    waiting: list[tuple[int, float, str, bool, int]] = []  # priority, due, key, open, item
    for number in range(300):
        if rng.random() < 0.6:
            priority, key = rng.choice((0, 0, 1, -1)), rng.choice("abc")
            open_, due = rng.random() < 0.3, float(rng.randrange(1000))
            lane = index.of(key, priority, open_)
            if lane.append(number, due, 1):
                index.moved(lane)
            waiting.append((priority, due, key, open_, number))
        elif waiting:
            barred = rng.choice((None, "a"))
            accept = None if barred is None else (lambda key, barred=barred: key != barred)
            able = [entry for entry in waiting if entry[2] != barred]
            lane = index.lead(-1.0, accept)  # nothing is overdue
            if not able:
                assert lane is None
                continue
            best = min(able, key=lambda entry: (-entry[0], entry[1]))
            assert lane is not None and (lane.priority, lane.due) == best[:2]
            (taken,) = lane.take(1)
            index.moved(lane)
            waiting = [entry for entry in waiting if entry[4] != taken]
        closed = [entry[1] for entry in waiting if not entry[3]]
        expiring = index.expiring()
        assert (expiring.due if expiring else None) == min(closed, default=None)
        assert sum(lane.count for lane in index.all()) == len(waiting)
        if waiting:
            assert index.keys == len({entry[2] for entry in waiting})


def test_every_eighth_choice_is_for_what_is_overdue():
    index: LaneIndex[str] = LaneIndex()
    for key, priority, open_ in (("patient", 0, True), ("busy", 9, False)):
        lane = index.of(key, priority, open_)
        lane.append(key, 1.0, 1)
        index.moved(lane)
    led = [index.lead(5.0, None) for _ in range(16)]
    assert [lane.key for lane in led if lane] == (["busy"] * 7 + ["patient"]) * 2
    assert all(lane is not None and lane.key == "busy" for lane in
               [index.lead(0.5, None) for _ in range(16)])  # fmt: skip
