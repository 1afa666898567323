"""The 10→20→10 network that every server in `small-tensor` computes, with weights from a seed.

So small that its arithmetic costs next to nothing: what is measured is the serving. On a device
that the environment gives (`models.device`), a batch takes that device's time. Owns the weights'
recipe and the reference in numpy; the same class is served by all.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from backends.wire import Signature, TensorSpec
from bench.models.device import Curve

INPUTS, HIDDEN, OUTPUTS = 10, 20, 10
MAX_BATCH = 64
# What the weights are made from, everywhere; the run's seed chooses the requests.
WEIGHTS_SEED = 7


class Mlp(nn.Module):
    """y = W₂ relu(W₁ x + b₁) + b₂."""

    signature = Signature(
        inputs=(TensorSpec("x", "FP32", (INPUTS,)),),
        outputs=(TensorSpec("y", "FP32", (OUTPUTS,)),),
        max_batch_size=MAX_BATCH,
    )

    def __init__(self, seed: int = WEIGHTS_SEED) -> None:
        super().__init__()
        w1, b1, w2, b2 = weights(seed)
        self._device = Curve.given()
        self.first = nn.Linear(INPUTS, HIDDEN)
        self.second = nn.Linear(HIDDEN, OUTPUTS)
        with torch.no_grad():
            for parameter, value in zip(self.parameters(), (w1, b1, w2, b2), strict=True):
                parameter.copy_(torch.from_numpy(value))

    def forward(self, x_NI: Tensor) -> Tensor:
        began = time.perf_counter() if self._device is not None else 0.0
        y_NO: Tensor = self.second(functional.relu(self.first(x_NI)))
        if self._device is not None:
            self._device.wait(began, len(x_NI))
        return y_NO

    def infer(self, x: Tensor) -> Mapping[str, Tensor]:
        return {"y": self(x)}


def weights(seed: int = WEIGHTS_SEED) -> tuple[NDArray[np.float32], ...]:
    """W₁ [20, 10], b₁ [20], W₂ [10, 20], b₂ [10]."""
    rng = np.random.default_rng(seed)
    shapes = ((HIDDEN, INPUTS), (HIDDEN,), (OUTPUTS, HIDDEN), (OUTPUTS,))
    return tuple(rng.normal(0, 0.5, shape).astype(np.float32) for shape in shapes)


def reference(x_NI: NDArray[np.float32], seed: int = WEIGHTS_SEED) -> NDArray[np.float32]:
    """What every server must answer, without torch's kernels."""
    w1, b1, w2, b2 = weights(seed)
    hidden_NH = np.maximum(x_NI @ w1.T + b1, 0)
    return np.asarray(hidden_NH @ w2.T + b2, dtype=np.float32)
