"""What `llm` compares: the same prompts, answered greedily to the same length by several programs.

Owns the task and the outcome, as they travel to and from a program as JSON lines. Invariant: every
sequence of a task has the same number of prompt tokens and of answer tokens, so that a batch that
is padded loses nothing by it. A program says `{"ready": versions}` once, then a line a task.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """`prompts`: token ids, all of one length, of which the first `shared` are the same in all.
    `tokens`: how many each answer has, whatever the model would like."""

    prompts: Sequence[Sequence[int]]
    shared: int
    tokens: int

    @property
    def total(self) -> int:
        return len(self.prompts) * self.tokens


@dataclass(slots=True, kw_only=True)
class Outcome:
    """Seconds: of the whole task, to the first token of each answer, and between the others.
    `answers`: the first tokens of each, or its text where a program says no tokens. `cached`:
    prompt tokens that were not computed."""

    seconds: float
    first: list[float]
    gaps: list[float]
    answers: list[Any]
    cached: int = 0
    details: dict[str, Any] = field(default_factory=dict)


def marks(start: float, times: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """Time to first token and gaps, from when each token of each answer was there."""
    first = [found[0] - start for found in times]
    gaps = [b - a for found in times for a, b in pairwise(found)]
    return first, gaps


def answer_tasks(versions: dict[str, str], generate: Callable[[Task], Outcome]) -> None:
    """A program's loop: tasks from standard input, an outcome or `failed` for each."""
    with _quiet() as say:
        say({"ready": versions})
        for line in sys.stdin:
            try:
                say(asdict(generate(Task(**json.loads(line)))))
            except Exception as error:
                traceback.print_exc()
                say({"failed": f"{type(error).__name__}: {error}"})


@contextmanager
def _quiet() -> Iterator[Callable[[Any], None]]:
    """Standard output is for outcomes; what a library prints there goes to standard error."""
    sink = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(found: Any) -> None:
        sink.write(json.dumps(found) + "\n")
        sink.flush()

    with sink:
        yield say
