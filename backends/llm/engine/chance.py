"""Random numbers that depend on nothing but what they are for: (seed, choice, position).

Counter-based, so that a choice comes out the same in every batch, after every preemption and in
every process. Pure numpy, vectorised over the batch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniform(seeds: Words, choices: Words, positions: Words) -> NDArray[np.float64]:
    """In [0, 1), with 53 bits."""
    with np.errstate(over="ignore"):
        word = _mix(seeds + _GOLDEN * (choices + np.uint64(1)))
        word = _mix(word ^ (_GOLDEN * (positions + np.uint64(1))))
        word = _mix(word + _GOLDEN)
    return (word >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(word: Words) -> Words:
    """The finaliser of splitmix64 (Steele, Lea and Flood, 2014): each bit depends on all."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))
