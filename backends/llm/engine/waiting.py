"""What waits to run, in the order in which it may: priority, then the tenant that got least, then
first come, first served.

Owns the lines; knows neither pages nor steps. Invariant: of one tenant and priority nobody
overtakes, but what had begun before and was preempted comes back to the head.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from backends.llm.engine.fairness import Fairness
from backends.llm.engine.sequence import Sequence

_Line = OrderedDict[Sequence, None]


class Waiting:
    def __init__(self, fairness: Fairness) -> None:
        self._fairness = fairness
        self._lines: dict[int, dict[int, _Line]] = {}  # by priority, by tenant
        self.count = 0
        # Tokens whose KV is still to be computed.
        self.tokens = 0

    def push(self, sequence: Sequence, *, first: bool = False) -> None:
        lines = self._lines.setdefault(sequence.generation.priority, {})
        line = lines.setdefault(sequence.tenant, OrderedDict())
        line[sequence] = None
        if first:
            line.move_to_end(sequence, last=False)
        self.count += 1
        self.tokens += len(sequence.tokens)

    def remove(self, sequence: Sequence) -> None:
        priority = sequence.generation.priority
        lines = self._lines[priority]
        line = lines[sequence.tenant]
        del line[sequence]
        self.count -= 1
        self.tokens -= len(sequence.tokens)
        if not line:
            del lines[sequence.tenant]
            if not lines:
                del self._lines[priority]

    @property
    def first(self) -> Sequence | None:
        """The best head."""
        if not self._lines:
            return None
        lines, counters = self._lines[min(self._lines)], self._fairness.counters
        return next(iter(lines[min(lines, key=lambda index: float(counters[index]))]))

    def heads(self) -> Iterator[Sequence]:
        """The first of each line, best first; taken anew after every change."""
        counters = self._fairness.counters
        for priority in sorted(self._lines):
            lines = self._lines[priority]
            for tenant in sorted(lines, key=lambda index: float(counters[index])):
                yield next(iter(lines[tenant]))

    def __iter__(self) -> Iterator[Sequence]:
        for lines in self._lines.values():
            for line in lines.values():
                yield from line

    def __contains__(self, sequence: Sequence) -> bool:
        lines = self._lines.get(sequence.generation.priority, {})
        return sequence in lines.get(sequence.tenant, {})
