"""The moving average of the weights, which is evaluated and published in their place if asked.

Owns the average, by parameter name, of the shards that this rank holds. Invariant: outside
`shown()` the model trains with its own weights; the average is part of the resume state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainer.shards import changed, local


class Average:
    """After n updates, each weight of `decay` counts by about its age: exponentially.

    `model` has the parameters, wrapped as it is called.
    `followed` gives the value of a parameter that counts: where replicas train apart, the one that
    they have agreed on, so that their averages are the same.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        decay: float,
        model: nn.Module,
        followed: Callable[[str, Tensor], Tensor] = lambda _, own: own,
    ) -> None:
        self.parameters = {name: p for name, p in parameters.items() if p.requires_grad}
        self._decay, self._model, self._value = decay, model, followed
        self.tensors: dict[str, Tensor] = {}
        self.restart()

    def restart(self) -> None:
        """From the weights as they are."""
        for name, part in zip(self.parameters, self._followed(), strict=True):
            if name in self.tensors:
                self.tensors[name].copy_(part)
            else:
                self.tensors[name] = part.clone()

    def update(self, step: int, last: int | None = None) -> None:
        """After the optimizer's step, counted from 1; for all from `step` to `last` where the
        weights stand still in them. Early on, when there is little to average, it follows faster:
        with a decay of (1 + n) / (10 + n), as is usual."""
        steps = range(step, (last or step) + 1)
        weight = 1 - math.prod(min(self._decay, (1 + n) / (10 + n)) for n in steps)
        averages = list(self.tensors.values())
        torch._foreach_lerp_(averages, self._followed(), weight)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Within it, the model has the averages, and the averages are the model's weights."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for part, average in zip(self._live(), self.tensors.values(), strict=True):
            kept = part.clone()
            part.copy_(average)
            average.copy_(kept)
        changed(self._model)

    def _followed(self) -> list[Tensor]:
        return [local(self._value(name, p)) for name, p in self.parameters.items()]

    def _live(self) -> list[Tensor]:
        return [local(parameter) for parameter in self.parameters.values()]
