"""The scheduler, driven as the engine drives it: whatever comes and goes, nothing is lost, the best
gets on, and pages of a step in flight stay where they are."""

from __future__ import annotations

from collections import deque

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from backends.llm.engine.admission import Limits, admit
from backends.llm.engine.pages import Pages
from backends.llm.engine.plan import Plan
from backends.llm.engine.scheduler import Scheduler
from backends.llm.engine.sequence import Sequence, Table
from tests.backends.llm.fakes import generation

SIZE, PAGES, ROWS, BUDGET, CONTEXT = 4, 10, 4, 9, 32
LIMITS = Limits(vocabulary=50, context=CONTEXT, choices=ROWS)


class Driver:
    """What the engine does, without tensors: the sampled tokens are the rows' positions."""

    def __init__(self, *, pages: int = PAGES) -> None:
        table = Table(ROWS, CONTEXT, SIZE)
        self.scheduler = Scheduler(table, Pages(pages), budget=BUDGET)
        self.scheduler.serving = "v1"
        self.table = table
        self.flight: deque[Plan] = deque()
        self.sequences: list[Sequence] = []
        self.now = 0.0
        self.count = 0

    def submit(self, length: int, max_tokens: int = 4, token: int = 7, **options: object) -> None:
        self.count += 1
        each = generation(self.count, [token] * length, max_tokens, **options)
        leader = admit(each, LIMITS)
        self.sequences += leader.group
        self.scheduler.submit(leader)

    def plan(self) -> Plan | None:
        for sequence in self.scheduler.expired(self.now):
            self.scheduler.end(sequence, "deadline")
        plan = self.scheduler.plan(self.now, settled=not self.flight)
        if plan is not None:
            self.look(plan)
            self.flight.append(plan)
        return plan

    def look(self, plan: Plan) -> None:
        """What must be true of every plan."""
        table, pages = self.table, self.scheduler.pages
        assert 0 < plan.tokens <= BUDGET
        assert len(set(plan.rows.tolist())) == len(plan.rows)
        copied = {target for _, target in plan.copies}
        for row in plan.decodes.tolist():
            sequence = table.sequences[row]
            assert sequence is not None and sequence.version == plan.version
            self.writable(row, int(table.computed[row]) - 1)
        for chunk in plan.chunks:
            assert chunk.sequence.version == plan.version
            deadline = chunk.sequence.generation.deadline
            assert deadline is None or deadline > self.now
            assert chunk.last == (chunk.stop == table.known[chunk.row])
        assert all(pages.refs[page] == 1 for page in copied)

    def writable(self, row: int, position: int) -> None:
        page = self.table.pages[row, position // SIZE]
        refs = self.scheduler.pages.refs[page] - self.scheduler._pinned[page]
        assert refs == 1, "what is written is nobody else's"

    def land(self) -> None:
        plan, table = self.flight.popleft(), self.table
        for row, place in zip(plan.sampled.tolist(), plan.places.tolist(), strict=True):
            if table.ended[row]:
                continue
            assert table.known[row] == place, "one token at a time, in order"
            table.tokens[row, place] = place
            table.known[row] += 1
            if table.known[row] >= table.limit[row]:
                sequence = table.sequences[row]
                assert sequence is not None
                self.scheduler.end(sequence, "length")
        self.scheduler.settle(plan)

    def drain(self) -> None:
        """Everything that is there comes to its end."""
        for _ in range(5000):
            if not self.plan() and not self.flight:
                break
            while self.flight:
                self.land()
        assert all(sequence.finish for sequence in self.sequences)
        self.scheduler.check()
        assert self.scheduler.pages.counts.held == 0


class SchedulerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.driver = Driver()

    @rule(
        length=st.integers(1, CONTEXT - 1),
        max_tokens=st.integers(1, 20),
        token=st.integers(0, 1),
        n=st.integers(1, ROWS),
        priority=st.integers(0, 2),
        tenant=st.sampled_from("ab"),
        patience=st.sampled_from([None, None, 3, 30]),
    )
    def submit(self, patience: int | None, **options: int) -> None:
        if self.driver.scheduler.waiting.count < 8:
            deadline = None if patience is None else self.driver.now + patience
            self.driver.submit(deadline=deadline, **options)

    @precondition(lambda self: len(self.driver.flight) < 2)
    @rule()
    def plan(self) -> None:
        driver = self.driver
        settled, scheduler = not driver.flight, driver.scheduler
        best = min(scheduler.running, key=lambda s: s.rank, default=None)
        better = [s for s in scheduler.waiting if best and s.generation.priority < best.rank[0]]
        plan = driver.plan()
        if settled and best is not None and best.finish is None and not better:
            assert plan is not None and best.row in plan.rows.tolist(), "the best gets on"

    @precondition(lambda self: self.driver.flight)
    @rule()
    def land(self) -> None:
        self.driver.land()

    @precondition(lambda self: self.driver.flight)
    @rule()
    def fail(self) -> None:
        driver = self.driver
        plan = driver.flight.popleft()
        for sequence in plan.involved(driver.table):
            if sequence.finish is None:
                driver.scheduler.end(sequence, "error")
        driver.scheduler.settle(plan, sound=False)

    @precondition(lambda self: self.driver.sequences)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.driver.sequences))
        for other in self.driver.sequences:
            if other.key == sequence.key and other.finish is None:
                self.driver.scheduler.end(other, "cancelled")

    @rule(seconds=st.integers(1, 10))
    def wait(self, seconds: int) -> None:
        self.driver.now += seconds

    @precondition(lambda self: not self.driver.flight)
    @rule(version=st.sampled_from(["v1", "v2"]))
    def move(self, version: str) -> None:
        self.driver.scheduler.serving = version
        other = "v2" if version == "v1" else "v1"
        assert self.driver.scheduler.move(other, version) == []
        assert not self.driver.scheduler.uses(other)

    @invariant()
    def sound(self) -> None:
        driver = self.driver
        driver.scheduler.check()
        for plan in driver.flight:
            for row in plan.rows.tolist():
                held = driver.table.pages_of(row)
                assert held and all(driver.scheduler.pages.refs[held] > 0)
                assert len(held) * SIZE >= driver.table.computed[row]

    def teardown(self) -> None:
        while self.driver.flight:
            self.driver.land()
        self.driver.drain()


SchedulerMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None
)
TestScheduler = SchedulerMachine.TestCase


def keys(plan: Plan | None, driver: Driver) -> list[object]:
    assert plan is not None
    return [s.key for row in plan.rows.tolist() if (s := driver.table.sequences[row]) is not None]


def test_decodes_and_chunks_share_the_budget() -> None:
    driver = Driver()
    driver.submit(2)
    driver.submit(20, token=8)
    plan = driver.plan()
    assert plan is not None
    assert [(c.start, c.stop, c.last) for c in plan.chunks] == [(0, 2, True), (0, 7, False)]
    driver.land()
    plan = driver.plan()
    assert plan is not None and len(plan.decodes) == 1
    assert [(c.start, c.stop, c.last) for c in plan.chunks] == [(7, 15, False)]


def test_nothing_is_kept_of_a_version_under_which_nobody_runs() -> None:
    driver = Driver()
    for version in ("v2", "v3", "v4"):
        driver.scheduler.serving = version
        driver.submit(2)
        driver.submit(3, token=8)
        driver.plan()
        driver.scheduler.running.decoding("v1")
        driver.land()
        driver.drain()
    running = driver.scheduler.running
    assert not running.versions and not running._decoding and not running._rows


def test_lower_numbers_go_first_and_take_room_from_higher_ones() -> None:
    driver = Driver()
    for _ in range(ROWS):
        driver.submit(1, 9, priority=1)
    assert keys(driver.plan(), driver) == [1, 2, 3, 4]
    driver.submit(1, 9, priority=0)
    driver.submit(1, 9, priority=2)
    driver.land()
    assert set(keys(driver.plan(), driver)) == {1, 2, 3, 5}
    assert driver.scheduler.preemptions == 1
    driver.land()
    driver.drain()


def test_expired_work_is_never_begun() -> None:
    driver = Driver()
    driver.submit(3, deadline=5.0)
    driver.now = 5.0
    assert driver.plan() is None
    assert driver.sequences[0].finish == "deadline"


def test_the_youngest_gives_way_and_comes_back_to_the_head() -> None:
    driver = Driver(pages=4)
    driver.submit(4, 9)
    driver.submit(4, 9, token=8)
    driver.submit(1, 1, token=9)
    begun = []
    while driver.scheduler.preemptions == 0:
        begun.append(keys(driver.plan(), driver))
        driver.land()
    assert all(1 in step for step in begun)
    assert driver.sequences[1].row < 0 or driver.sequences[1].finish is None
    driver.drain()


def test_tenants_share_what_there_is() -> None:
    """One with many requests cannot keep another with few waiting behind them all."""
    driver = Driver(pages=40)
    for _ in range(12):
        driver.submit(4, 2, tenant="greedy")
    driver.submit(4, 2, tenant="modest", token=8)
    driver.plan()
    driver.land()
    driver.plan()
    driver.land()
    modest = next(s for s in driver.sequences if s.generation.tenant == "modest")
    assert modest.started
    assert sum(s.started for s in driver.sequences) < 6
    driver.drain()


def test_tenants_that_always_want_more_get_as_much_whatever_they_ask_at_a_time() -> None:
    driver = Driver(pages=40)
    fairness = driver.scheduler.fairness
    ever = [fairness.enter(tenant) for tenant in ("long", "short")]  # they never leave
    asks = {"long": (20, 8), "short": (3, 2)}
    for step in range(600):
        waiting = [s.generation.tenant for s in driver.scheduler.waiting]
        for tenant, (length, tokens) in asks.items():
            if waiting.count(tenant) < ROWS:
                driver.submit(length, tokens, tenant=tenant, token=step % 50)
        driver.plan()
        driver.land()
        driver.sequences = [s for s in driver.sequences if s.finish is None]
    got = fairness.counters[ever]
    assert min(got) > 2000
    # The largest request of each row may have begun before the other's turn came.
    assert abs(got[0] - got[1]) <= ROWS * (20 + 2 * 8)
    for index in ever:
        fairness.leave(index)
    driver.drain()


def test_a_step_in_flight_keeps_the_pages_of_what_has_ended() -> None:
    driver = Driver()
    driver.submit(3, 9)
    driver.plan()
    driver.plan()
    sequence = driver.sequences[0]
    driver.scheduler.end(sequence, "cancelled")
    held = driver.scheduler.pages.counts.held
    assert held > 0
    driver.land()
    if driver.flight:
        assert driver.scheduler.pages.counts.held == held
        driver.land()
    assert driver.scheduler.pages.counts.held == 0


def test_choices_copy_the_page_that_they_write_to_and_no_other() -> None:
    driver = Driver(pages=20)
    driver.submit(6, 3, n=3)
    driver.plan()
    driver.land()
    plan = driver.plan()
    assert plan is not None and len(plan.copies) == 2, "the last of three writes in place"
    assert len({source for source, _ in plan.copies}) == 1
    assert len(np.unique(driver.table.pages[plan.rows, 0])) == 1
    assert len(np.unique(driver.table.pages[plan.rows, 1])) == 3
    driver.land()
    driver.drain()


def test_pages_in_computation_are_shared_and_a_step_that_fails_takes_all_who_did_along() -> None:
    driver = Driver(pages=20)
    scheduler = driver.scheduler
    for token in (7, 8):
        driver.submit(9 if token == 7 else 2, token=token)
    first = driver.plan()  # its budget leaves the other none of its last two tokens
    assert first is not None and len(first.chunks) == 1
    driver.submit(9)
    second = driver.plan()
    assert second is not None and len(driver.flight) == 2
    one, apart, late = driver.sequences
    assert [chunk.start for chunk in second.chunks] == [0, 8]
    assert (late.cached, apart.cached) == (8, 0)
    assert driver.table.pages_of(late.row)[:2] == driver.table.pages_of(one.row)[:2]
    assert set(scheduler.spoilt(second)) == {one, apart, late}, "all of it decode or begin in it"
    assert set(scheduler.spoilt(first)) == {one, late}
    for sequence in scheduler.spoilt(first):
        scheduler.end(sequence, "error")
    scheduler.settle(driver.flight.popleft(), sound=False)
    driver.land()
    driver.submit(9)
    driver.plan()
    assert driver.sequences[-1].cached == 0
    driver.land()
    driver.drain()
    assert apart.finish == "length"


def test_a_step_that_fails_leaves_no_names_of_what_was_cancelled_in_it() -> None:
    driver = Driver(pages=20)
    driver.submit(9)
    driver.plan()
    driver.scheduler.end(driver.sequences[0], "cancelled")
    driver.scheduler.settle(driver.flight.popleft(), sound=False)
    driver.submit(9)
    driver.plan()
    assert driver.sequences[1].cached == 0
    driver.land()
    driver.drain()
