"""The bytes of all tokens, laid out so that a state's mask is a few passes of numpy.

Owns the walk from a state over the vocabulary. Immutable. Invariant: special tokens and tokens
without bytes are in no mask, except those that end an answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from backends.llm.structured.automaton import DEAD, Automaton


class Vocabulary:
    """`pieces[token]`: its bytes, None or empty for tokens that are no text. `size`: as many tokens
    as the model has logits."""

    def __init__(self, pieces: Sequence[bytes | None], size: int, stop_ids: frozenset[int]) -> None:
        self.pieces, self.size, self.stop_ids = pieces, size, stop_ids
        self.words = (size + 31) // 32
        texts = [(piece, id) for id, piece in enumerate(pieces) if piece and id not in stop_ids]
        # In the order of their bytes: neighbours go through the same states.
        texts.sort()
        self._ids = np.array([id for _, id in texts], np.int64)
        self._data = np.frombuffer(b"".join(piece for piece, _ in texts), np.uint8)
        self._lengths = np.array([len(piece) for piece, _ in texts], np.int64)
        self._starts = np.cumsum(self._lengths) - self._lengths

    def mask(self, automaton: Automaton, state: int) -> NDArray[np.uint32]:
        """[words] the tokens by which the automaton gets from `state` to a state; where the text
        may end, or no token leads on, also those that end it."""
        allowed = np.zeros(self.words * 32, np.bool_)
        row = automaton.row(state)
        alive = row[self._data[self._starts]] != DEAD if len(self._ids) else np.zeros(0, np.bool_)
        at = np.flatnonzero(alive)
        states = row[self._data[self._starts[at]]].astype(np.intp)
        place = 1
        while len(at):
            done = self._lengths[at] == place
            allowed[self._ids[at[done]]] = True
            at, states = at[~done], states[~done]
            met = np.zeros(int(states.max(initial=-1)) + 1, np.bool_)
            met[states] = True
            automaton.learn(np.flatnonzero(met))
            states = automaton.table[states, self._data[self._starts[at] + place]].astype(np.intp)
            going = states != DEAD
            at, states = at[going], states[going]
            place += 1
        if automaton.final(state) or not allowed.any():
            allowed[list(self.stop_ids)] = True
        return np.packbits(allowed, bitorder="little").view(np.uint32)
