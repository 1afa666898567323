"""Second copies of batches that take longer than nearly all: sent once, to another replica.

Owns when; what a copy is sent with is the dispatcher's, and which of the two counts is `flight`'s.
Invariants: a batch has one copy at most, and only while nothing waits: who waits needs the slot
more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.flight import Flight
from gateway.policy.hedging import Hedging


class Hedges:
    """`share`: of batches that may have a copy. `copy(flight)`: send one, if a replica is free;
    whether it was sent."""

    def __init__(
        self,
        share: float,
        copy: Callable[[Flight, Callable[[float], bool]], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.share, self._copy, self._loop = share, copy, loop
        self._policy = Hedging(max_extra=share)

    def sent(self, flight: Flight, now: float) -> None:
        delay = self._policy.delay(now)
        if delay is not None:
            flight.timer = self._loop.call_later(delay, self._due, flight)

    def answered(self, flight: Flight, now: float) -> None:
        """By whichever copy came first: what the first one had taken by then."""
        self._policy.observe(now - flight.sent)

    def _due(self, flight: Flight) -> None:
        flight.timer = None
        self._copy(flight, self._policy.take)
