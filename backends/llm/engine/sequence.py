"""One choice of a generation while the engine has it, and the fixed table of those that run.

`Sequence` is what is said about it once; `Table` holds, in one row for each running sequence, the
numbers that change at every step, so that a step is prepared by indexing arrays and not by walking
objects. Both are data: the scheduler and the engine change them. Invariant: a row belongs to one
sequence from `place` to `clear`, and while a step with that row is in flight it is not cleared.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from backends.llm.generation import Generation, Logprob, TokenMask

# Stop ids of a row that are looked for in one comparison; a sequence with more is looked at alone.
STOPS = 8
UNLIMITED = -1

Rows = NDArray[np.int64]


class Sequence:
    """`limit` is how many tokens it may have in all. `followers`: the other choices of its prompt,
    until it is computed; then they go their own ways."""

    __slots__ = (
        "cached",
        "choice",
        "finish",
        "followers",
        "generation",
        "key",
        "limit",
        "mask",
        "named",
        "names",
        "order",
        "pinned",
        "prompt",
        "prompt_done",
        "prompt_logprobs",
        "reuse",
        "root",
        "row",
        "seed",
        "started",
        "tenant",
        "tokens",
        "version",
    )

    def __init__(
        self, generation: Generation, choice: int, tokens: NDArray[np.int32], limit: int, seed: int
    ) -> None:
        self.key = generation.key
        self.generation, self.choice, self.limit, self.seed = generation, choice, limit, seed
        # What is known of it while it is off the table: the prompt, and what was generated before
        # it was preempted.
        self.tokens = tokens
        self.prompt = len(tokens)
        self.followers: list[Sequence] = []
        self.row = -1
        self.tenant = -1
        self.order = 0
        self.pinned = generation.version is not None
        self.version = generation.version or ""
        # The names of its first full pages, what they chain to, and how many pages have theirs.
        self.names: list[bytes] = []
        self.root = b""
        self.named = 0
        # Whether it may begin with cached pages: not where the prompt's logits are wanted.
        self.reuse = not generation.prompt_logprobs
        # Prompt tokens that came from the cache when it first began.
        self.cached = 0
        self.started = False
        self.finish: str | None = None
        self.mask: TokenMask | None = None
        # With `echo`: what is known of the prompt's tokens, and whether that is all.
        self.prompt_logprobs: list[Logprob | None] | None = None
        self.prompt_done = False

    @property
    def rank(self) -> tuple[int, int, int]:
        """Who gives way to whom: a greater one to a lesser one."""
        return self.generation.priority, self.order, self.choice

    @property
    def group(self) -> list[Sequence]:
        return [self, *self.followers]


class Table:
    """Arrays by row. `length` counts the tokens of a sequence, those included that a step in flight
    will give; `known` those whose value the host has; `computed` those whose KV is written, or will
    be once the steps in flight end."""

    def __init__(self, rows: int, context: int, page_size: int) -> None:
        self.rows, self.page_size = rows, page_size
        self.sequences: list[Sequence | None] = [None] * rows
        self.free = list(range(rows - 1, -1, -1))
        self.length = np.zeros(rows, np.int64)
        self.known = np.zeros(rows, np.int64)
        self.computed = np.zeros(rows, np.int64)
        self.prompt = np.zeros(rows, np.int64)
        self.limit = np.zeros(rows, np.int64)
        self.tenant = np.zeros(rows, np.int64)
        self.inflight = np.zeros(rows, np.int64)
        self.ended = np.ones(rows, np.bool_)
        self.tokens = np.zeros((rows, context), np.int32)
        self.pages = np.zeros((rows, -(-context // page_size)), np.int32)
        self.held = np.zeros(rows, np.int64)
        self.stops = np.full((rows, STOPS), UNLIMITED, np.int64)
        # Has a mask, wants logprobs or has more stop ids: its results are looked at alone.
        self.special = np.zeros(rows, np.bool_)

    def place(self, sequence: Sequence) -> int:
        """Give it a row, with nothing computed."""
        row = sequence.row = self.free.pop()
        assert self.sequences[row] is None
        self.sequences[row] = sequence
        count = len(sequence.tokens)
        self.length[row] = self.known[row] = count
        self.tokens[row, :count] = sequence.tokens
        self.computed[row] = self.inflight[row] = self.held[row] = 0
        self.prompt[row], self.limit[row] = sequence.prompt, sequence.limit
        self.tenant[row] = sequence.tenant
        self.ended[row] = False
        sampling = sequence.generation.sampling
        stops = sorted(sampling.stop_ids)
        few = stops[:STOPS]
        self.stops[row] = UNLIMITED
        self.stops[row, : len(few)] = few
        self.special[row] = (
            sequence.generation.mask is not None
            or sampling.logprobs is not None
            or sequence.generation.prompt_logprobs
            or len(stops) > STOPS
        )
        return row

    def clear(self, row: int) -> None:
        sequence = self.sequences[row]
        assert sequence is not None and not self.inflight[row] and not self.held[row]
        sequence.tokens = self.tokens[row, : self.known[row]].copy()
        sequence.row = -1
        self.sequences[row] = None
        self.ended[row] = True
        self.free.append(row)

    def pages_of(self, row: int) -> list[int]:
        pages: list[int] = self.pages[row, : self.held[row]].tolist()
        return pages

    def extend(self, row: int, pages: list[int]) -> None:
        held = int(self.held[row])
        self.pages[row, held : held + len(pages)] = pages
        self.held[row] = held + len(pages)
