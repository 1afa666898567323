"""One batch at a replica, and the copy of it that may be under way at another one.

Plain data. Invariant: of two twins, the first to be answered speaks for both; the other one only
gives back what it holds.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from gateway.policy.breaker import Permit
from gateway.policy.load import Lease
from gateway.replica import NativeReplica
from gateway.request import TensorRequest


@dataclass(slots=True, eq=False)
class Flight:
    """`sent`: when its requests first left; `lost`: its twin has answered for it."""

    batch: list[TensorRequest]
    replica: NativeReplica
    lease: Lease
    permit: Permit
    sent: float
    per_row: float  # what a row counts in the batch's budget; 1 where rows are counted
    takes_s: float  # as predicted when it left
    id: int = 0
    twin: Flight | None = None
    lost: bool = False
    timer: asyncio.TimerHandle | None = None

    def part(self) -> Flight | None:
        """It has landed, and needs no copy any more; its twin, if that is still under way."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        twin, self.twin = self.twin, None
        if twin is not None:
            twin.twin = None
        return twin

    def leave_to(self, twin: Flight) -> None:
        """It brings no answer; what still waits for one waits for its twin."""
        for request in self.batch:
            request.flight = None if request.finished else twin

    def cancel(self) -> None:
        """Nobody waits for it any more: the replica is told, and still answers."""
        self.replica.cancel(self.id)
        if self.twin is not None:
            self.twin.replica.cancel(self.twin.id)
