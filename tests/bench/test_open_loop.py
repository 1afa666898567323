"""Requests begin at intended times whatever becomes of others, and all have ended in the end."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from bench.open_loop import around, open_loop
from bench.scenarios.reload_tensors import Phase

RATE = 500.0


async def test_requests_are_intended_at_even_times_and_end_before_the_loop():
    intended, ended, over, slow = list[float](), list[float](), asyncio.Event(), asyncio.Event()

    async def one(at: float) -> None:
        intended.append(at)
        if len(intended) == 1:
            await slow.wait()  # it holds up nobody
        if len(intended) == 20:
            over.set()
            asyncio.get_running_loop().call_later(0.01, slow.set)
        ended.append(at)

    async def until() -> None:
        await over.wait()

    begun = await open_loop(RATE, one, until())
    assert begun == len(intended) == len(ended) >= 20
    gaps = [after - before for before, after in itertools.pairwise(intended)]
    assert gaps == pytest.approx([1 / RATE] * len(gaps))
    assert ended.index(intended[0]) > 0


async def test_what_ends_it_badly_is_raised():
    async def one(at: float) -> None:
        pass

    async def until() -> None:
        raise RuntimeError("the publisher ended with status 1")

    with pytest.raises(RuntimeError, match="status 1"):
        await open_loop(RATE, one, until())


async def test_the_event_begins_after_the_quiet_time():
    order = list[str]()

    async def load(until) -> str:
        order.append("load")
        await until
        return f"found {len(order)}"

    async def event() -> None:
        order.append("event")

    assert await around(load, event, 0.0) == ("found 2", "found 4")
    assert order == ["load", "load", "load", "event"]


@pytest.mark.parametrize(
    ("version", "first", "last", "mixed", "misnamed"),
    [("3-ab", 3.0, 3.0, 0, 0), ("3-ab", 3.0, 4.0, 1, 0), ("4-ab", 3.0, 3.0, 0, 1)],
)
def test_answers_are_judged_by_their_stamps(version, first, last, mixed, misnamed):
    phase = Phase()
    phase.judge(version, first, last)
    assert (phase.mixed, phase.misnamed, phase.versions) == (mixed, misnamed, {version})
