"""What a status counts: never less than before, and in balance whoever dies."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gateway.counts import Counts


def report(accepted: int, done: int, live: int) -> list[dict]:
    counters = {"accepted": accepted, "done": done, "failed": 0, "cancelled": 0, "live": live}
    return [{"name": "m", "counters": counters}]


def test_what_a_dead_worker_had_not_answered_has_failed():
    counts = Counts()
    counts.seen("w-0/1", report(10, 7, 3))
    counts.seen("w-1/1", report(5, 5, 0))
    counts.gone("w-0/1")
    assert counts.of("m") == {"accepted": 15, "done": 12, "failed": 3, "cancelled": 0, "live": 0}
    counts.seen("w-0/2", report(1, 0, 1))
    assert counts.of("m")["accepted"] == 16 and counts.of("m")["live"] == 1
    counts.gone("nobody")
    assert set(counts.of("unknown").values()) == {0}


class Lives(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()
        self.workers = [dict(life=1, accepted=0, done=0) for _ in range(3)]
        self.before = self.counts.of("m")

    @rule(n=st.integers(0, 2), more=st.integers(0, 5), share=st.floats(0, 1), seen=st.booleans())
    def work(self, n, more, share, seen):
        worker = self.workers[n]
        worker["accepted"] += more
        worker["done"] += int(share * (worker["accepted"] - worker["done"]))
        if seen:
            live = worker["accepted"] - worker["done"]
            made = report(worker["accepted"], worker["done"], live)
            self.counts.seen(f"{n}/{worker['life']}", made)

    @rule(n=st.integers(0, 2))
    def die(self, n):
        self.counts.gone(f"{n}/{self.workers[n]['life']}")
        self.workers[n] = dict(life=self.workers[n]["life"] + 1, accepted=0, done=0)

    @invariant()
    def balanced_and_rising(self):
        now = self.counts.of("m")
        assert now["accepted"] == now["done"] + now["failed"] + now["cancelled"] + now["live"]
        assert all(now[name] >= self.before[name] for name in now if name != "live")
        self.before = now


TestLives = Lives.TestCase
