"""The task's data: sequences in which the next token follows from the last with some noise.

Made from a seed, so that every program has the same; also a class for `data.class`.
"""

from __future__ import annotations

import torch
from torch import Tensor

HELD_OUT = 8


def sequences(count: int, length: int, vocabulary: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, vocabulary, (count, length), generator=generator)
    for at in range(1, length):
        follows = torch.rand(count, generator=generator) < 0.7
        tokens[:, at] = torch.where(
            follows, (tokens[:, at - 1] * 5 + 1) % vocabulary, tokens[:, at]
        )
    return tokens


class Sequences:
    def __init__(self, count: int, length: int, vocabulary: int, seed: int) -> None:
        self._tokens = sequences(count + HELD_OUT, length, vocabulary, seed)

    def train(self) -> dict[str, Tensor]:
        return {"tokens": self._tokens[HELD_OUT:]}

    def held_out(self) -> dict[str, Tensor]:
        return {"tokens": self._tokens[:HELD_OUT]}
