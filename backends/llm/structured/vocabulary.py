"""The bytes of all tokens as a trie, laid out so that a state's mask is a few passes of numpy.

Owns the walk from a state over the vocabulary, level by level: tokens that begin alike are looked
at together, and what is dead is not looked at again. Immutable. Invariant: special tokens and
tokens without bytes are in no mask, except those that end an answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backends.llm.structured.automaton import DEAD, Automaton

Numbers = NDArray[np.intp]


class _Level(NamedTuple):
    """The trie's nodes at one depth, in the order of their texts: each one's byte, the token that
    ends there (or -1), and its children in the next level: the first of them and how many."""

    byte: NDArray[np.uint8]
    token: Numbers
    first: Numbers
    children: Numbers


class Vocabulary:
    """`pieces[token]`: its bytes, None or empty for tokens that are no text. `size`: as many tokens
    as the model has logits."""

    def __init__(self, pieces: Sequence[bytes | None], size: int, stop_ids: frozenset[int]) -> None:
        self.pieces, self.size, self.stop_ids = pieces, size, stop_ids
        self.words = (size + 31) // 32
        by_text: dict[bytes, int] = {}
        # Tokens with the same bytes as another: (token, that other one).
        twins: list[tuple[int, int]] = []
        for token, piece in enumerate(pieces):
            if piece and token not in stop_ids:
                first = by_text.setdefault(piece, token)
                if first != token:
                    twins.append((token, first))
        self._twins = np.array(twins, np.intp).reshape(-1, 2)
        self._levels = list(_levels(sorted(by_text), by_text))

    def mask(self, automaton: Automaton, state: int) -> NDArray[np.uint32]:
        """[words] the tokens by which the automaton gets from `state` to a state; where the text
        may end, or no token leads on, also those that end it."""
        allowed = np.zeros(self.words * 32, np.bool_)
        # The nodes of a level that are alive, and the states that their parents led to.
        nodes = np.arange(len(self._levels[0].byte)) if self._levels else np.zeros(0, np.intp)
        before = np.full(len(nodes), state, np.intp)
        for level in self._levels:
            automaton.learn(_distinct(before))
            states = automaton.table[before, level.byte[nodes]]
            alive = np.flatnonzero(states != DEAD)
            nodes, states = nodes[alive], states[alive]
            tokens = level.token[nodes]
            allowed[tokens[tokens >= 0]] = True
            counts = level.children[nodes]
            if not counts.any():
                break
            # The children of all of them: runs of neighbours, one after the other.
            ends = np.cumsum(counts)
            nodes = np.arange(ends[-1]) + np.repeat(level.first[nodes] - ends + counts, counts)
            before = np.repeat(states, counts).astype(np.intp)
        allowed[self._twins[:, 0]] = allowed[self._twins[:, 1]]
        if automaton.final(state) or not allowed.any():
            allowed[list(self.stop_ids)] = True
        return np.packbits(allowed, bitorder="little").view(np.uint32)


def _distinct(states: Numbers) -> Numbers:
    met = np.zeros(int(states.max(initial=0)) + 1, np.bool_)
    met[states] = True
    return np.flatnonzero(met)


def _levels(texts: Sequence[bytes], token_of: dict[bytes, int]) -> Iterator[_Level]:
    """`texts` are sorted, so that those which begin alike are neighbours."""
    data = np.frombuffer(b"".join(texts), np.uint8)
    lengths = np.array([len(text) for text in texts], np.intp)
    starts = np.cumsum(lengths) - lengths
    tokens = np.array([token_of[text] for text in texts], np.intp)
    # Texts that reach this depth, and the node of the level before that each goes through.
    reach, through = np.arange(len(texts)), np.zeros(len(texts), np.intp)
    previous: tuple[NDArray[np.uint8], Numbers] | None = None
    depth = 0
    while len(reach):
        byte = data[starts[reach] + depth]
        new = np.ones(len(reach), np.bool_)
        new[1:] = (through[1:] != through[:-1]) | (byte[1:] != byte[:-1])
        node = np.cumsum(new) - 1
        if previous is not None:
            yield _Level(*previous, *_children(through[new], len(previous[0])))
        token = np.full(int(node[-1]) + 1, -1, np.intp)
        depth += 1
        ends = lengths[reach] == depth
        token[node[ends]] = tokens[reach[ends]]
        previous = byte[new], token
        reach, through = reach[~ends], node[~ends]
    if previous is not None:
        yield _Level(*previous, *_children(np.zeros(0, np.intp), len(previous[0])))


def _children(parents: Numbers, count: int) -> tuple[Numbers, Numbers]:
    """Of each of `count` nodes: where its children begin among `parents`' owners, how many."""
    children = np.bincount(parents, minlength=count).astype(np.intp)
    return np.cumsum(children) - children, children
