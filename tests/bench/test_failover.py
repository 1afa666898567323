"""What a run of `failover` shows, and the load that keeps every request."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
import uvloop

from bench.load.spec import LoadSpec
from bench.load.watch import Seen, Watch
from bench.scenarios.failover import Times, judge, watch
from bench.series import MeasureFailed

TIMES = Times(began=0.0, killed=1.0, relaunched=2.0, listening=2.3)


def steady(begin, end, seconds=0.02, who="s1", how="200"):
    """A request each 10 ms."""
    count = round((end - begin) * 100)
    return [Seen(begin + i / 100, begin + i / 100 + seconds, how, who) for i in range(count)]


def test_a_kill_that_nobody_notices_hurts_nobody():
    seen = [*steady(0, 2.6), *steady(2.6, 3.6, who="s0")]
    found = judge(seen, TIMES, "s0")
    assert (found.failed, found.hurt_until) == (0, 0.0)
    assert found.back == pytest.approx(0.32)
    assert found.p99_before == pytest.approx(found.p99_back) == pytest.approx(0.02)


def test_failures_and_late_answers_hurt_until_the_last_that_was_sent():
    broken = [Seen(1.004, 1.01, "reset", ""), Seen(1.007, 1.1, "200", "s1")]
    late_but_before = Seen(0.99, 1.2, "200", "s1")
    while_relaunched = Seen(1.95, 2.2, "200", "s1")
    found = judge([*steady(0, 2.6), *broken, late_but_before, while_relaunched], TIMES, "s0")
    assert (found.failed, found.failures) == (1, ("reset",))
    assert found.hurt_until == pytest.approx(0.007)
    assert found.back is None and found.p99_back is None


def test_answers_of_the_dead_that_were_on_their_way_are_no_return():
    found = judge([*steady(0, 2.6), Seen(0.99, 1.01, "200", "s0")], TIMES, "s0")
    assert found.back is None


def test_a_run_without_a_before_is_no_figure():
    with pytest.raises(MeasureFailed, match="before the kill"):
        judge(steady(1.1, 2.0), TIMES, "s0")


def test_every_request_that_was_due_is_kept(base):
    spec = LoadSpec(url=f"{base}/status/200", method="GET", rate=400.0, timeout_s=2.0)

    async def script(load: Watch) -> None:
        while len(load.seen) < 100:  # noqa: ASYNC110
            await asyncio.sleep(0.005)

    seen = watch(spec, script)
    assert all(s.good and s.ended >= s.due for s in seen)
    dues = sorted(s.due for s in seen)
    gaps = [b - a for a, b in pairwise(dues)]
    assert gaps == pytest.approx([1 / 400.0] * len(gaps))


@pytest.mark.parametrize(("path", "how"), [("/drop", "closed"), ("/never", "timeout")])
def test_what_breaks_is_kept_too(base, path, how):
    spec = LoadSpec(url=base + path, method="GET", rate=200.0, timeout_s=0.2)

    async def script(load: Watch) -> None:
        await asyncio.sleep(0.05)

    seen = watch(spec, script)
    assert len(seen) >= 5
    assert {s.how for s in seen} == {how}


def test_a_server_that_is_gone_is_a_refusal_at_once():
    spec = LoadSpec(url="http://127.0.0.1:1/", method="GET", rate=200.0)

    async def run() -> None:
        await Watch(spec).run(lambda: asyncio.sleep(0))

    with (
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        pytest.raises(OSError),
    ):
        runner.run(run())
