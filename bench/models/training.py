"""What the checkpoint scenario trains: a network whose state is large beside what a step computes.

Owns no weights: training makes them. Data is made from a seed.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from backends.wire import Signature, TensorSpec

SAMPLES, HELD_OUT = 2048, 64


class Wide(nn.Module):
    """x → residual layers of `width` → one number; 4·width² bytes of weights a layer."""

    def __init__(self, width: int = 1024, layers: int = 4) -> None:
        super().__init__()
        self.signature = Signature(
            inputs=(TensorSpec("x", "FP32", (width,)),),
            outputs=(TensorSpec("y", "FP32", (1,)),),
            max_batch_size=64,
        )
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.head = nn.Linear(width, 1)

    def forward(self, x_NW: Tensor) -> Tensor:
        for layer in self.layers:
            x_NW = x_NW + functional.relu(layer(x_NW))
        return self.head(x_NW)  # type: ignore[no-any-return]

    def loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        return functional.mse_loss(self(batch["x"]), batch["y"]), {}

    def infer(self, x: Tensor) -> Mapping[str, Tensor]:
        return {"y": self(x)}


class Noise:
    """Vectors and the mean of each."""

    def __init__(self, width: int = 1024) -> None:
        draw = torch.Generator().manual_seed(1)
        self._x = torch.randn(SAMPLES + HELD_OUT, width, generator=draw)
        self._y = self._x.mean(1, keepdim=True)

    def train(self) -> dict[str, Tensor]:
        return {"x": self._x[:SAMPLES], "y": self._y[:SAMPLES]}

    def held_out(self) -> dict[str, Tensor]:
        return {"x": self._x[SAMPLES:], "y": self._y[SAMPLES:]}
