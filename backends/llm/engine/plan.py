"""What one step computes: {sequence: tokens this step}, decided before any tensor is made.

Data only. Invariant: all sequences of a plan run under one version of the weights, and whoever gets
a token in it appears once in `sampled`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from backends.llm.engine.sequence import Rows, Sequence, Table


class Chunk(NamedTuple):
    """Tokens [start, stop) of a sequence; `last` when tokens follow that are not known yet, one for
    each of `group`. With `echo`, the logprobs of the tokens after its first `prompt_rows` are
    wanted."""

    sequence: Sequence
    row: int
    start: int
    stop: int
    last: bool
    group: list[Sequence]
    echo: bool
    prompt_rows: int


@dataclass(slots=True, eq=False)
class Plan:
    """`decodes` have one token each. `copies` of pages (from, to) come before the step."""

    version: str
    decodes: Rows
    chunks: list[Chunk] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    # Those that came to a row in it.
    placed: list[Sequence] = field(default_factory=list)
    # Rows that get a token: the decodes, then for each last chunk its sequence and its followers.
    sampled: Rows = field(default_factory=lambda: np.zeros(0, np.int64))
    # Where in its sequence each of those tokens comes.
    places: Rows = field(default_factory=lambda: np.zeros(0, np.int64))
    # Every row that must stay as it is until the step has ended, and what is computed then.
    rows: Rows = field(default_factory=lambda: np.zeros(0, np.int64))
    after: Rows = field(default_factory=lambda: np.zeros(0, np.int64))

    def involved(self, table: Table) -> list[Sequence]:
        """Everybody whom it computes for: those too that only follow."""
        rows = [table.sequences[row] for row in self.rows.tolist()]
        groups = [member for chunk in self.chunks for member in chunk.group]
        return list(dict.fromkeys([s for s in rows if s is not None] + groups))

    def filled(self, table: Table) -> set[int]:
        """Pages that its chunks write to the end, which others may have begun with since."""
        size, pages = table.page_size, table.pages
        spans = [(c.row, c.start // size, c.stop // size) for c in self.chunks]
        return {page for row, one, end in spans for page in pages[row, one:end].tolist()}

    @property
    def tokens(self) -> int:
        return len(self.decodes) + sum([chunk.stop - chunk.start for chunk in self.chunks])

    @property
    def prefill_tokens(self) -> int:
        return sum([chunk.stop - chunk.start for chunk in self.chunks])
