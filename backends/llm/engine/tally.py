"""Which tokens a sequence has used and how often, for penalties: kept up token by token.

Pure numpy. Invariant: `ids` are distinct, and `counts` are of generated tokens only: one that is
only in the prompt has 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


class Tally:
    def __init__(self, prompt: NDArray[np.int32]) -> None:
        """Of a prompt without generated tokens."""
        known = np.unique(prompt).astype(np.int64)
        self._size = len(known)
        self._ids = np.concatenate([known, np.empty(32, np.int64)])
        self._counts = np.zeros(len(self._ids), np.float32)
        self._place = {token: place for place, token in enumerate(known.tolist())}

    @property
    def ids(self) -> Ids:
        return self._ids[: self._size]

    @property
    def counts(self) -> NDArray[np.float32]:
        return self._counts[: self._size]

    def add(self, token: int) -> None:
        place = self._place.get(token)
        if place is None:
            place = self._place[token] = self._size
            if place == len(self._ids):
                self._ids = np.concatenate([self._ids, np.empty(place, np.int64)])
                self._counts = np.concatenate([self._counts, np.zeros(place, np.float32)])
            self._ids[place] = token
            self._size += 1
        self._counts[place] += 1
