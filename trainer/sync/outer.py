"""The outer optimizer: what a mean delta does to the agreed parameters.

Owns the momentum. A delta is (before − after), so it points as a gradient does. Invariant: with
rate 1 and no momentum the parameters become the mean of the replicas'.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Nesterov:
    """SGD with Nesterov's momentum, in place on `parameters`, one tensor at a time."""

    def __init__(self, parameters: Mapping[str, Tensor], lr: float, momentum: float) -> None:
        self._parameters, self._lr, self._factor = parameters, lr, momentum
        self.momentum = (
            {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
            if momentum
            else {}
        )

    def step(self, name: str, delta: Tensor) -> None:
        delta = delta.to(self._parameters[name].dtype)
        if self._factor:
            moment = self.momentum[name].mul_(self._factor).add_(delta)
            delta = delta.add(moment, alpha=self._factor)
        self._parameters[name].sub_(delta, alpha=self._lr)
