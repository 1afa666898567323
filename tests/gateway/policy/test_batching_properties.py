"""What holds for the batcher whatever happens: any items, any clock, any curve."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.policy.batching import Batcher, BatchingKnobs
from gateway.policy.service import ServiceCurve


@dataclass(eq=False)
class Item:
    number: int
    rows: int
    arrived: float
    deadline: float
    priority: int
    key: str


@dataclass
class Course:
    """A batcher driven at random, and all that came of it."""

    seed: int
    knobs: BatchingKnobs
    slots: int
    mixed: bool
    now: float = 100.0
    free: int = 0
    added: list[Item] = field(default_factory=list)
    refused: list[Item] = field(default_factory=list)
    ended: dict[Item, str] = field(default_factory=dict)
    batches: list[list[Item]] = field(default_factory=list)
    log: list[object] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.queue: Batcher[Item] = Batcher(self.knobs)
        self.curve = ServiceCurve()
        self.free = self.slots
        self.running: list[list[Item]] = []

    def run(self, steps: int) -> None:
        actions = (self.add, self.add, self.add, self.ask, self.land, self.discard, self.lose)
        for _ in range(steps):
            self.now += self.rng.choice((0.0, 1e-4, 1e-3, 1e-2))
            self.rng.choice(actions)()
            waiting = [i for i in self.added if i not in self.ended and not self.flies(i)]
            assert len(self.queue) == len(waiting)
            assert self.queue.rows <= sum(item.rows for item in waiting)  # less what was displaced

    def flies(self, item: Item) -> bool:
        return any(item in batch for batch in self.running)

    def add(self) -> None:
        rng, mixed = self.rng, self.mixed
        budget = rng.choice((0.02, 0.05, 1.0, inf)) if mixed else 0.05
        item = Item(
            number=len(self.added) + len(self.refused),
            rows=rng.choice((1, 1, 2, 5)) if mixed else 1,
            arrived=self.now,
            deadline=self.now + budget,
            priority=rng.choice((-1, 0, 0, 3)) if mixed else 0,
            key=rng.choice("aab") if mixed else "a",
        )
        refusal = self.queue.add(item, self.now)
        self.log.append(refusal and refusal.reason)
        (self.added if refusal is None else self.refused).append(item)
        if refusal is not None and refusal.reason == "queue_full":
            assert self.queue.rows + item.rows > self.knobs.max_queue

    def ask(self) -> None:
        accept = (lambda key: key == "b") if self.mixed and self.rng.random() < 0.2 else None
        plan = self.queue.next(
            self.now, free=self.free, slots=self.slots, curve=self.curve, accept=accept
        )
        self.log.append((plan.reason, [i.number for i in plan.batch], plan.wake))
        for item in plan.dropped:
            # Without a deadline, only something of higher priority displaces it.
            assert item.deadline < inf or item.priority < 3
            self.end(item, "dropped")
        assert plan.wake is None or plan.wake > self.now
        if not plan.batch:
            assert plan.reason in {"empty", "busy", "hold", "unaccepted", "late"}
            return
        assert self.free > 0
        assert len({item.key for item in plan.batch}) == 1
        assert accept is None or accept(plan.batch[0].key)
        assert sum(item.rows for item in plan.batch) <= self.knobs.max_batch_size
        for item in plan.batch:
            assert item not in self.ended and not self.flies(item)
            assert item.deadline > self.now
        self.free -= 1
        self.running.append(plan.batch)
        self.batches.append(plan.batch)

    def land(self) -> None:
        if self.running:
            batch = self.running.pop(self.rng.randrange(len(self.running)))
            self.free += 1
            rows = sum(item.rows for item in batch)
            self.curve.observe(rows, (0.008 + 0.0002 * rows) * self.rng.choice((0.9, 1.0, 1.3)))
            for item in batch:
                self.end(item, "done")

    def lose(self) -> None:
        """A replica dies: its batch comes back."""
        if self.running and self.rng.random() < 0.5:
            batch = self.running.pop()
            self.free += 1
            self.queue.requeue(batch, self.now)

    def discard(self) -> None:
        if self.added:
            item = self.rng.choice(self.added)
            waits = item not in self.ended and not self.flies(item)
            assert self.queue.discard(item) is waits
            if waits:
                self.end(item, "cancelled")

    def end(self, item: Item, how: str) -> None:
        assert item not in self.ended, "ended twice"
        self.ended[item] = how

    def drain(self) -> None:
        """Slots free up again and again, and nothing new comes."""
        for _ in range(10_000):
            if not len(self.queue) and not self.running:
                assert self.queue.rows == 0
                return
            self.now += 0.005
            self.land()
            self.ask()
        raise AssertionError("something waits for ever")


courses = st.builds(
    Course,
    seed=st.integers(0, 2**32),
    knobs=st.builds(
        BatchingKnobs,
        max_batch_size=st.sampled_from((5, 8, 64)),
        max_queue=st.sampled_from((64, 256)),
        slo_s=st.sampled_from((None, 0.05)),
        hold=st.booleans(),
    ),
    slots=st.sampled_from((1, 2, 4)),
    mixed=st.booleans(),
)


@given(courses)
@settings(max_examples=60, deadline=None)
def test_every_item_leaves_exactly_once_and_none_waits_for_ever(course):
    course.run(150)
    course.drain()
    assert set(course.ended) == set(course.added)


@given(courses)
@settings(max_examples=15, deadline=None)
def test_the_same_events_give_the_same_decisions(course):
    again = Course(course.seed, course.knobs, course.slots, course.mixed)
    course.run(150)
    again.run(150)
    assert course.log == again.log


@given(
    st.integers(0, 2**32),
    st.lists(st.tuples(st.sampled_from((0.0, 1.0, 2.0)), st.integers(1, 3)), max_size=60),
)
@settings(deadline=None)
def test_among_equals_the_first_come_is_the_first_served(seed, given_items):
    queue: Batcher[Item] = Batcher(BatchingKnobs(max_batch_size=4, overhead_s=0.0))
    curve = ServiceCurve()
    for number, (deadline, rows) in enumerate(given_items):
        assert queue.add(Item(number, rows, 0.0, 10.0 + deadline, 0, "a"), 0.0) is None
    served: list[Item] = []
    while batch := queue.next(0.0, free=1, slots=1, curve=curve).batch:
        served += batch
    assert [i.number for i in served] == [
        i.number for i in sorted(served, key=lambda i: (i.deadline, i.number))
    ]
    assert len(served) == len(given_items)


@given(st.integers(1, 40), st.integers(0, 39), st.booleans())
def test_with_a_deadline_that_nobody_misses_the_oldest_is_in_every_batch(count, extra, known):
    queue: Batcher[Item] = Batcher(BatchingKnobs(max_batch_size=16, slo_s=10.0))
    curve = ServiceCurve()
    if known:
        for size in range(1, 33):
            curve.observe(size, 0.001 * size)
    for number in range(count + extra):
        queue.add(Item(number, 1, 0.0, 10.0, 0, "a"), 0.0)
    expected = 0
    while batch := queue.next(0.0, free=1, slots=1, curve=curve).batch:
        assert batch[0].number == expected
        expected += len(batch)
    assert expected == count + extra
