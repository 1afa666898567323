"""The production batcher, and the simplest late-bound rule, under the simulator's protocol.

Ours learns the service curve and the arrival rate from nothing, as it does in a gateway.
"""

from __future__ import annotations

from collections import deque
from math import inf

from bench.sim.batch_workload import Cell
from bench.sim.batch_world import Decision, Request
from gateway.policy.batching import Batcher, BatchingKnobs
from gateway.policy.service import ServiceCurve


class Penstock:
    def __init__(self, cell: Cell, *, hold: bool = True) -> None:
        self._batcher: Batcher[Request] = Batcher(
            BatchingKnobs(
                max_batch_size=cell.largest,
                slo_s=cell.slo_s,
                max_queue=1 << 16,
                hold=hold,
                overhead_s=0.0,
            )
        )
        self._curve = ServiceCurve()
        self._slots = cell.replicas

    def arrive(self, request: Request, now: float) -> bool:
        return self._batcher.add(request, now) is None

    def decide(self, now: float, free: int) -> Decision:
        plan = self._batcher.next(now, free=free, slots=self._slots, curve=self._curve)
        return Decision(plan.batch, len(plan.dropped), inf if plan.wake is None else plan.wake)

    def ended(self, batch: list[Request], seconds: float, now: float) -> None:
        self._curve.observe(len(batch), seconds)


class Greedy:
    """A free slot takes what waits; nothing is dropped."""

    def __init__(self, cell: Cell) -> None:
        self._largest = cell.largest
        self._queue: deque[Request] = deque()

    def arrive(self, request: Request, now: float) -> bool:
        self._queue.append(request)
        return True

    def decide(self, now: float, free: int) -> Decision:
        count = min(len(self._queue), self._largest)
        return Decision([self._queue.popleft() for _ in range(count)])

    def ended(self, batch: list[Request], seconds: float, now: float) -> None:
        """Learns nothing."""
