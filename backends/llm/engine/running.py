"""Who runs, as sets and counts: all of them, by version, those whose prompt is being computed, and
the rows that decode.

Owns no policy. Invariant: whoever runs either has tokens of its prompt to compute, follows one that
has, or decodes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import TypeVar

import numpy as np

from backends.llm.engine.sequence import Rows, Sequence

_Key = TypeVar("_Key", bound=Hashable)


class Running:
    def __init__(self) -> None:
        self._all: dict[Sequence, None] = {}
        self._versions: dict[str, int] = {}
        self._priorities: dict[int, int] = {}
        self._prefilling: dict[Sequence, None] = {}
        self._decoding: dict[str, dict[int, None]] = {}
        # The same as arrays, until they change.
        self._rows: dict[str, Rows] = {}

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._all)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._all

    @property
    def versions(self) -> list[str]:
        return list(self._versions)

    @property
    def worst_priority(self) -> int:
        """Of those that run; there are some."""
        return max(self._priorities)

    @property
    def worst(self) -> Sequence:
        """Who gives way first."""
        return max(self._all, key=lambda sequence: sequence.rank)

    def begin(self, leader: Sequence) -> None:
        """Its prompt is to be computed, for itself and its followers."""
        for sequence in leader.group:
            self._all[sequence] = None
            version, priority = sequence.version, sequence.generation.priority
            self._versions[version] = self._versions.get(version, 0) + 1
            self._priorities[priority] = self._priorities.get(priority, 0) + 1
        self._prefilling[leader] = None

    def decode(self, sequence: Sequence) -> None:
        """Its prompt is computed."""
        self._prefilling.pop(sequence, None)
        self._decoding.setdefault(sequence.version, {})[sequence.row] = None
        self._rows.pop(sequence.version, None)

    def stop(self, sequence: Sequence) -> None:
        del self._all[sequence]
        _less(self._versions, sequence.version)
        _less(self._priorities, sequence.generation.priority)
        self._prefilling.pop(sequence, None)
        decoding = self._decoding.get(sequence.version, {})
        if sequence.row in decoding:
            del decoding[sequence.row]
            self._rows.pop(sequence.version, None)
            if not decoding:
                del self._decoding[sequence.version]

    def prefilling(self, version: str) -> list[Sequence]:
        """Best first."""
        found = [sequence for sequence in self._prefilling if sequence.version == version]
        found.sort(key=lambda sequence: sequence.rank)
        return found

    def leader(self, sequence: Sequence) -> Sequence:
        """Whom it follows; itself if nobody."""
        return next((s for s in self._prefilling if sequence in s.followers), sequence)

    def decoding(self, version: str) -> Rows:
        decoding = self._decoding.get(version)
        if decoding is None:
            return np.zeros(0, np.int64)
        rows = self._rows.get(version)
        if rows is None:
            rows = self._rows[version] = np.array(list(decoding), np.int64)
        return rows


def _less(counts: dict[_Key, int], key: _Key) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
