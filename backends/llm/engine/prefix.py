"""Reuse of computed pages: the name of a full page is a hash of everything that its KV depends on.

A page's name chains over the names before it, so equal names mean equal tokens from the start,
under equal weights and the same salt. Invariant: a page is named only when its tokens are known and
its KV is computed, or will be by a step that no reader of it comes before: within a step, each
layer writes the keys and values of all tokens before any of them attends.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from backends.llm.engine.pages import Pages
from backends.llm.engine.plan import Plan
from backends.llm.engine.sequence import Sequence, Table

# Clients choose the tokens, so a collision that can be looked for would show one tenant another's
# text: 128 bits of a cryptographic hash, at about a microsecond a page.
_BYTES = 16


def root(version: str, salt: str = "") -> bytes:
    """What the first page of a sequence chains to."""
    return blake2b(f"{len(version)}:{version}{salt}".encode(), digest_size=_BYTES).digest()


def chain(
    names: list[bytes], root: bytes, tokens: NDArray[np.int32], page_size: int, count: int
) -> None:
    """Extend `names`, those of the first pages of `tokens`, to `count`."""
    for index in range(len(names), count):
        block = tokens[index * page_size : (index + 1) * page_size]
        assert len(block) == page_size
        before = names[-1] if names else root
        names.append(blake2b(before + block.tobytes(), digest_size=_BYTES).digest())


class Prefix:
    """Names pages and finds them. `isolate`: tenants share none; without `reuse` nobody does."""

    def __init__(self, table: Table, pages: Pages, *, isolate: bool, reuse: bool) -> None:
        self._table, self._pages, self._size = table, pages, table.page_size
        self._isolate, self._reuse = isolate, reuse

    def find(self, sequence: Sequence, version: str) -> list[int]:
        """The pages that it may begin with under that version; its last token is computed in any
        case, since what follows it is wanted."""
        if not (self._reuse and sequence.reuse):
            return []
        root = self._begin(sequence, version)
        found: list[int] = []
        while len(found) < (len(sequence.tokens) - 1) // self._size:
            chain(sequence.names, root, sequence.tokens, self._size, len(found) + 1)
            page = self._pages.find(sequence.names[len(found)])
            if page is None:
                break
            found.append(page)
        return found

    def promise(self, sequence: Sequence, stop: int) -> None:
        """The step that is being planned computes it up to there: who comes after it in the same
        step, or later, can begin with what that fills."""
        if self._reuse:
            self._name(sequence, stop // self._size, sequence.version)

    def name(self, plan: Plan) -> None:
        """The step of that plan has ended, so its tokens are known: the pages that its decodes
        filled can be found from here on."""
        if not self._reuse:
            return
        after = plan.after[: len(plan.decodes)]
        filled = after % self._size == 0
        for row, computed in zip(
            plan.decodes[filled].tolist(), after[filled].tolist(), strict=True
        ):
            sequence = self._table.sequences[row]
            assert sequence is not None
            # What gave an error may have written anything.
            if sequence.finish != "error":
                known = int(self._table.known[row])
                self._name(sequence, min(computed, known) // self._size, plan.version)

    def _name(self, sequence: Sequence, full: int, version: str) -> None:
        root, row = self._begin(sequence, version), sequence.row
        chain(sequence.names, root, self._table.tokens[row], self._size, full)
        for block in range(sequence.named, full):
            page = int(self._table.pages[row, block])
            self._pages.name(page, sequence.names[block], version)
        sequence.named = max(sequence.named, full)

    def _begin(self, sequence: Sequence, version: str) -> bytes:
        start = root(version, sequence.generation.tenant if self._isolate else "")
        if sequence.root != start:
            sequence.root, sequence.names = start, []
        return start
