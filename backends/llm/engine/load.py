"""How fast it has been lately, and how long answers are: what a gateway's estimates rest on.

Pure; `now` comes in. Invariant: what has no samples yet is 0, not a guess.
"""

from __future__ import annotations

import math

import numpy as np

from backends.llm.engine.plan import Plan
from backends.llm.engine.scheduler import Scheduler
from backends.llm.generation import EngineLoad

# Half of what counts is this old or younger, in seconds of work.
_HALF_S = 2.0
# Choices of which half count for the mean length.
_HALF_CHOICES = 32.0


class Rate:
    """Tokens per second of work: time without any does not count."""

    def __init__(self) -> None:
        self._tokens = self._seconds = 0.0

    def observe(self, tokens: int, seconds: float) -> None:
        keep = 0.5 ** (seconds / _HALF_S)
        self._tokens = self._tokens * keep + tokens
        self._seconds = self._seconds * keep + seconds

    @property
    def value(self) -> float:
        return self._tokens / self._seconds if self._seconds else 0.0


class Length:
    """The mean number of tokens of a choice."""

    def __init__(self) -> None:
        self._sum = self._count = 0.0

    def observe(self, tokens: int) -> None:
        keep = 0.5 ** (1 / _HALF_CHOICES)
        self._sum, self._count = self._sum * keep + tokens, self._count * keep + 1

    def remaining(self, generated: int, limit: int) -> int:
        """How many more one is expected to have. Of what is longer than the mean, as much again."""
        if not self._count:
            return limit
        return min(limit, math.ceil(max(self._sum / self._count - generated, generated / 2, 1)))


class Meter:
    """What steps and choices tell it, and the load that follows."""

    def __init__(self) -> None:
        self._prefill, self._decode, self._length = Rate(), Rate(), Length()

    def step(self, plan: Plan, seconds: float) -> None:
        """A mixed step counts for both: prompts that come slow the answers that run, and who asks
        for the rate of one wants to know it as it is beside the other."""
        if prompt := plan.prefill_tokens:
            self._prefill.observe(prompt, seconds)
        if len(plan.decodes):
            self._decode.observe(len(plan.decodes), seconds)

    def choice(self, tokens: int) -> None:
        self._length.observe(tokens)

    def load(self, scheduler: Scheduler) -> EngineLoad:
        table, counts = scheduler.table, scheduler.pages.counts
        rows = np.array([sequence.row for sequence in scheduler.running], np.int64)
        generated = (table.known[rows] - table.prompt[rows]).tolist()
        left = (table.limit[rows] - table.known[rows]).tolist()
        output = sum(map(self._length.remaining, generated, left))
        for sequence in scheduler.waiting:
            most = sequence.limit - len(sequence.tokens)
            output += self._length.remaining(0, most) * len(sequence.group)
        uncomputed = table.known[rows] - table.computed[rows]
        return EngineLoad(
            running=len(rows),
            waiting=scheduler.waiting.count,
            prompt_tokens=int(uncomputed[uncomputed > 1].sum()) + scheduler.waiting.tokens,
            output_tokens=output,
            pages_free=counts.free,
            pages_cached=counts.cached,
            pages_total=scheduler.pages.total,
            prefill_rate=self._prefill.value,
            decode_rate=self._decode.value,
            hit_tokens=scheduler.hit_tokens,
            prompt_total=scheduler.prompt_total,
        )
