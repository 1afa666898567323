"""Whose time is over: the deadlines of all sequences, waiting or running, soonest first.

Invariant: what has ended otherwise is never reported, and takes no memory for long.
"""

from __future__ import annotations

import heapq

from backends.llm.engine.sequence import Sequence

# What ended before its deadline is swept out when that many entries were added since.
_SWEEP = 256


class Deadlines:
    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Sequence]] = []
        self._count = self._swept = 0

    def add(self, sequence: Sequence) -> None:
        deadline = sequence.generation.deadline
        if deadline is None:
            return
        self._count += 1
        heapq.heappush(self._heap, (deadline, self._count, sequence))
        if self._count - self._swept > _SWEEP + len(self._heap) // 2:
            self._swept = self._count
            self._heap = [entry for entry in self._heap if entry[2].finish is None]
            heapq.heapify(self._heap)

    def expired(self, now: float) -> list[Sequence]:
        late: list[Sequence] = []
        while self._heap and self._heap[0][0] <= now:
            sequence = heapq.heappop(self._heap)[2]
            if sequence.finish is None:
                late.append(sequence)
        return late
