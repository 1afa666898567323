"""In which order samples are seen, as a pure function of one integer: the position.

Position p is sample p mod n of epoch p div n, shuffled by a permutation that only (seed, epoch)
keys: a Feistel network over a rectangle of at least n cells, walked until it lands below n (Black
and Rogaway, 2002). Nothing is stored, so nothing need be saved; and as no rank and no batch size
takes part, every world size sees the same samples in the same order, each exactly once an epoch.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from trainer.seeds import derive

Indices = NDArray[np.int64]
_Words = NDArray[np.uint64]

# Four are the theory for large domains (Luby and Rackoff); ours may be tiny, and a round is cheap.
ROUNDS = 8
# Positions computed at a time, an epoch at most: a block takes about a millisecond, so that the
# call's own cost vanishes and no step waits for long.
BLOCK = 8192


class Permutation:
    """A keyed bijection of range(size)."""

    def __init__(self, size: int, key: int) -> None:
        if size < 1:
            raise ValueError("a permutation needs at least one element")
        self._size = size
        rows = math.isqrt(size - 1) + 1  # the root, rounded up: few cells lie outside
        self._rows, self._columns = np.uint64(rows), np.uint64(-(-size // rows))
        self._keys = [np.uint64(derive(key, "round", number)) for number in range(ROUNDS)]

    def __call__(self, values: Indices) -> Indices:
        """The images of `values`, each below the size."""
        found = self._encrypt(values.astype(np.uint64))
        outside = np.flatnonzero(found >= self._size)
        while outside.size:  # ends: each walk is a cycle that began inside
            found[outside] = self._encrypt(found[outside])
            outside = outside[found[outside] >= self._size]
        return found.astype(np.int64)

    def _encrypt(self, cells: _Words) -> _Words:
        row, column = cells // self._columns, cells % self._columns
        for first, second in zip(self._keys[::2], self._keys[1::2], strict=True):
            row = (row + _mix(column ^ first) % self._rows) % self._rows
            column = (column + _mix(row ^ second) % self._columns) % self._columns
        return row * self._columns + column


def _mix(words: _Words) -> _Words:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


class SampleOrder:
    """Sample indices by position. Remembers one block, which says nothing new."""

    def __init__(self, size: int, seed: int) -> None:
        if size < 1:
            raise ValueError("there must be at least one sample")
        self.size, self._seed = size, seed
        self._start, self._block = 0, np.empty(0, np.int64)

    def slice(self, start: int, count: int) -> Indices:
        """The samples at positions [start, start + count)."""
        ends = self._start + len(self._block)
        if not self._start <= start <= start + count <= ends:
            self._start = start
            self._block = self._compute(start, max(count, min(BLOCK, self.size)))
        offset = start - self._start
        return self._block[offset : offset + count]

    def _compute(self, start: int, count: int) -> Indices:
        parts, at = [], start
        while at < start + count:
            epoch, counter = divmod(at, self.size)
            take = min(self.size - counter, start + count - at)
            shuffle = Permutation(self.size, derive(self._seed, "epoch", epoch))
            parts.append(shuffle(np.arange(counter, counter + take, dtype=np.int64)))
            at += take
        return np.concatenate(parts)


def share(total: int, parts: int, index: int) -> tuple[int, int]:
    """[start, end) of part `index` when `total` things are split as evenly as can be."""
    return total * index // parts, total * (index + 1) // parts
