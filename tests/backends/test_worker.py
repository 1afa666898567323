"""What waits is joined, bounded and taken once; the device thread outlives whatever it runs."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from backends.worker import DeviceThread, Intake


@dataclass(eq=False)
class Work:
    total: int
    key: str = "a"
    limit: int = 8


def take_all(intake):
    intake.close()
    batches = []
    while (batch := intake.take()) is not None:
        batches.append(batch)
    return batches


def filled(*works, room=1000):
    intake = Intake(room)
    for work in works:
        assert intake.offer(work)
    return intake


def test_what_waits_goes_together_up_to_the_limit():
    works = [Work(3), Work(3), Work(3), Work(2)]
    assert take_all(filled(*works)) == [works[:2], works[2:]]


def test_only_equal_keys_are_joined_and_the_oldest_goes_first():
    a, b, c, d = Work(2), Work(2, "b"), Work(2), Work(2, "b")
    assert take_all(filled(a, b, c, d)) == [[a, c], [b, d]]


def test_one_that_does_not_fit_is_not_overtaken_by_its_like():
    a, big, small = Work(4), Work(6), Work(1)
    assert take_all(filled(a, big, small)) == [[a], [big, small]]


def test_a_full_intake_refuses_and_an_empty_one_takes_anything():
    intake = Intake(10)
    assert intake.offer(Work(50, limit=64))
    assert not intake.offer(Work(1))
    assert intake.take()
    assert intake.offer(Work(10))
    assert not intake.offer(Work(1))
    assert intake.rows == 10


def test_work_without_rows_takes_room_too():
    intake = Intake(10)
    assert [intake.offer(Work(0)) for _ in range(11)] == [True] * 10 + [False]


def test_what_was_discarded_never_runs_and_gives_its_room_back():
    a, b = Work(6), Work(4)
    intake = filled(a, b, room=10)
    assert intake.discard(a)
    assert not intake.discard(a)
    assert intake.rows == 4
    assert take_all(intake) == [[b]]
    assert not intake.discard(b)
    assert intake.rows == 0


@given(st.lists(st.builds(Work, st.integers(0, 8), st.sampled_from("abc")), max_size=40))
def test_every_work_is_taken_once_in_batches_that_fit(works):
    intake = filled(*works)
    batches = take_all(intake)
    taken = [work for batch in batches for work in batch]
    assert sorted(map(id, taken)) == sorted(map(id, works))
    assert intake.rows == 0
    for batch in batches:
        assert len({work.key for work in batch}) == 1
        assert sum(work.total for work in batch) <= 8
    for key in "abc":
        assert [w for w in taken if w.key == key] == [w for w in works if w.key == key]


class Device:
    """A device thread whose batches are recorded; some raise."""

    def __init__(self, execute=None):
        self.intake = Intake(1000)
        self.done, self.crashes = [], []
        self.thread = DeviceThread(
            self.intake, execute or self.done.append, lambda *crash: self.crashes.append(crash)
        )
        self.thread.start()

    def end(self):
        self.intake.close()
        assert self.thread.join(10)


def test_jobs_and_tasks_run_on_one_thread_tasks_first():
    order, ready = [], threading.Event()
    device = Device(lambda jobs: order.append(threading.current_thread().name))
    device.intake.call(ready.wait)
    device.intake.offer(Work(1))
    device.intake.call(lambda: order.append("task"))
    ready.set()
    device.end()
    assert order == ["task", "device"]


def test_an_error_fails_its_jobs_and_the_thread_goes_on():
    ran = []

    def execute(jobs):
        if jobs[0].key == "bad":
            raise SystemExit("from the depths")
        ran.append(jobs)

    device, bad, good = Device(execute), Work(1, "bad"), Work(1)
    device.intake.offer(bad)
    device.intake.offer(good)
    device.end()
    assert ran == [[good]]
    ((jobs, error),) = device.crashes
    assert jobs == [bad] and isinstance(error, SystemExit)


def test_a_batch_that_hangs_is_seen():
    inside, go_on = threading.Event(), threading.Event()

    def execute(jobs):
        inside.set()
        assert go_on.wait(10)

    device = Device(execute)
    assert device.thread.busy_s() == 0.0
    device.intake.offer(Work(1))
    assert inside.wait(10)
    first = device.thread.busy_s()
    assert device.thread.busy_s() > first > 0
    go_on.set()
    device.end()
    assert device.thread.busy_s() == 0.0


def test_what_is_hopeless_is_taken_out_and_leaves_room():
    a, b, c = Work(4), Work(3), Work(2)
    intake = filled(a, b, c, room=9)
    assert not intake.offer(Work(1))
    assert intake.drop(lambda work: work.total == 3) == [b]
    assert intake.rows == 6 and intake.offer(d := Work(3))
    assert take_all(intake) == [[a, c], [d]]
