"""The token mask of one choice: where it is in its grammar, and what may come next.

Owns a choice's state; the automaton, the vocabulary and the cache are shared by all choices of a
grammar, on the device thread. Invariant: whatever tokens the masks permit, the text that ends by
`accept` has the grammar's form.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

import numpy as np
from numpy.typing import NDArray

from backends.llm.structured.automaton import DEAD, START, Automaton
from backends.llm.structured.vocabulary import Vocabulary

MAX_CACHE_BYTES = 64 << 20


class MaskCache:
    """The masks last used, of all grammars of a vocabulary."""

    def __init__(self, max_bytes: int = MAX_CACHE_BYTES) -> None:
        self._masks: OrderedDict[Hashable, NDArray[np.uint32]] = OrderedDict()
        self._max, self._bytes = max_bytes, 0

    def get(self, key: Hashable) -> NDArray[np.uint32] | None:
        mask = self._masks.get(key)
        if mask is not None:
            self._masks.move_to_end(key)
        return mask

    def put(self, key: Hashable, mask: NDArray[np.uint32]) -> None:
        mask.flags.writeable = False
        self._masks[key] = mask
        self._bytes += mask.nbytes
        while self._bytes > self._max and len(self._masks) > 1:
            _, gone = self._masks.popitem(last=False)
            self._bytes -= gone.nbytes


class GrammarMask:
    """A `TokenMask`."""

    def __init__(self, automaton: Automaton, vocabulary: Vocabulary, cache: MaskCache) -> None:
        self._automaton, self._vocabulary, self._cache = automaton, vocabulary, cache
        self._state, self._epoch = START, automaton.epoch
        self._places = automaton.places(START)

    def allowed(self) -> NDArray[np.uint32]:
        automaton = self._automaton
        automaton.tidy()
        self._catch_up()
        key = (automaton, automaton.epoch, self._state)
        mask = self._cache.get(key)
        if mask is None:
            mask = self._vocabulary.mask(automaton, self._state)
            self._cache.put(key, mask)
        return mask

    def accept(self, token: int) -> bool:
        if token in self._vocabulary.stop_ids:
            return True
        automaton = self._automaton
        self._catch_up()
        piece = self._vocabulary.pieces[token] if token < len(self._vocabulary.pieces) else None
        state = automaton.step(self._state, piece or b"")
        if state == DEAD:
            raise ValueError(f"token {token} was chosen against the mask")
        self._state, self._places = state, automaton.places(state)
        return automaton.over(state)

    def _catch_up(self) -> None:
        """The table began anew since: the state has another number."""
        if self._epoch != self._automaton.epoch:
            self._epoch = self._automaton.epoch
            self._state = self._automaton.find(self._places)
