"""Which layers each stage of a pipeline gets, by dynamic programming over what they cost.

Owns the choice: the slowest stage, which sets the pace of all, is made as fast as can be within the
memory of a rank. Pure. With 1F1B stage s of S holds S − s micro-batches' activations at once, so
that what fits depends on where a layer stands (PipeDream, Narayanan et al., 2019). Invariant: what
it returns is optimal for the costs that it was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from math import inf


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a layer: seconds of one micro-batch; bytes that stay (weights, gradients, moments); bytes
    of one micro-batch's activations."""

    seconds: float
    fixed: int = 0
    activations: int = 0


class DoesNotFit(ValueError):
    """No split keeps every stage within the memory."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """`before` and `after` are what the first and the last stage have beside layers. `passes` is
    the number of micro-batches, of which no more can be under way; None for memory: no bound."""

    layers: tuple[Cost, ...]
    before: Cost
    after: Cost
    stages: int
    passes: int
    memory: int | None = None

    def seconds(self, counts: Sequence[int]) -> float:
        """Of the slowest stage."""
        return max(self._stage(index, *part)[0] for index, part in enumerate(_bounds(counts)))

    def fits(self, counts: Sequence[int]) -> bool:
        parts = enumerate(_bounds(counts))
        return all(self._room(self._stage(index, *part)[1]) for index, part in parts)

    def best(self) -> tuple[int, ...]:
        """Layers of each stage, at least one each as far as there are. Raises DoesNotFit."""
        total = len(self.layers)
        least = 1 if total >= self.stages else 0

        @cache
        def solve(stage: int, start: int) -> tuple[float, tuple[int, ...]]:
            """The slowest of the stages from `stage` on, with the layers from `start` on."""
            if stage == self.stages - 1:
                seconds, memory = self._stage(stage, start, total)
                return (seconds if self._room(memory) else inf), (total - start,)
            found: tuple[float, tuple[int, ...]] = (inf, ())
            for end in range(start + least, total - least * (self.stages - 1 - stage) + 1):
                seconds, memory = self._stage(stage, start, end)
                if not self._room(memory) or seconds >= found[0]:
                    continue
                rest, counts = solve(stage + 1, end)
                if max(seconds, rest) < found[0]:
                    found = max(seconds, rest), (end - start, *counts)
            return found

        seconds, counts = solve(0, 0)
        if seconds == inf:
            raise DoesNotFit(
                f"no split of {total} layers over {self.stages} stages keeps each within "
                f"{self.memory:,} bytes"
            )
        return counts

    def _room(self, memory: int) -> bool:
        return self.memory is None or memory <= self.memory

    def _stage(self, index: int, start: int, end: int) -> tuple[float, int]:
        """Seconds and bytes of stage `index` with the layers [start, end)."""
        members = list(self.layers[start:end])
        if index == 0:
            members.append(self.before)
        if index == self.stages - 1:
            members.append(self.after)
        under_way = min(self.passes, self.stages - index)
        memory = sum(cost.fixed + under_way * cost.activations for cost in members)
        return sum(cost.seconds for cost in members), memory


def _bounds(counts: Sequence[int]) -> list[tuple[int, int]]:
    ends = list(accumulate(counts))
    return list(zip([0, *ends], ends, strict=False))
