"""Open loops: requests begin at intended times, whatever became of those before.

Owns the arrivals and the order of a measurement around an event; what a request is, and what it
counts, is its scenario's. Invariant: every request that began has ended when a loop returns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
# One request, begun at its intended time on the loop's clock.
One = Callable[[float], Coroutine[Any, Any, None]]

WARM_UP_S = 1.0


async def open_loop(rate: float, one: One, until: Awaitable[None]) -> int:
    """Begins so many a second until then; how many. Raises what `until` raises."""
    begun, loop, end = 0, asyncio.get_running_loop(), asyncio.ensure_future(until)
    async with asyncio.TaskGroup() as group:
        due = loop.time()
        while not end.done():
            group.create_task(one(due))
            begun += 1
            due += 1 / rate
            await asyncio.sleep(max(0.0, due - loop.time()))
    await end
    return begun


async def around(
    load: Callable[[Awaitable[None]], Awaitable[T]],
    event: Callable[[], Awaitable[None]],
    quiet_s: float,
) -> tuple[T, T]:
    """What `load` finds in a quiet time, and what while the event happens; warmed up before. `load`
    goes on until what it is given is over."""
    await load(asyncio.sleep(WARM_UP_S))
    return await load(asyncio.sleep(quiet_s)), await load(event())
