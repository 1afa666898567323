"""The discrete-event core of the simulators: a clock that jumps from event to event.

Owns simulated time and its seeds. Knows nothing of queues or replicas. Events of one instant run in
the order in which they were set, so a run is a pure function of its scenario and its seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from heapq import heappop, heappush
from math import inf
from typing import Any


class Event:
    """Something that will happen; `cancel` makes it not happen."""

    __slots__ = ("args", "call", "when")

    def __init__(self, when: float, call: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.when, self.args = when, args
        self.call: Callable[..., None] | None = call

    def cancel(self) -> None:
        self.call, self.args = None, ()


class Engine:
    """`now` is simulated time in seconds, from 0."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Event]] = []
        self._count = 0

    def at(self, when: float, call: Callable[..., None], *args: Any) -> Event:
        """`call(*args)` at `when`; a time that has passed means now."""
        event = Event(max(when, self.now), call, args)
        self._count += 1
        heappush(self._heap, (event.when, self._count, event))
        return event

    def after(self, delay: float, call: Callable[..., None], *args: Any) -> Event:
        return self.at(self.now + delay, call, *args)

    def run(self, until: float = inf) -> None:
        """Until nothing is left to happen, or up to and including `until`."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            when, _, event = heappop(heap)
            if event.call is not None:
                self.now = when
                event.call(*event.args)
        if until != inf:
            self.now = max(self.now, until)


def stream(seed: int, *names: object) -> random.Random:
    """A generator of its own for each named purpose: what one draws never shifts another."""
    return random.Random("/".join(map(str, (seed, *names))))
