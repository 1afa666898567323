"""Handwritten digits: the model that the demo trains, publishes, serves and reloads."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from backends.wire import Signature, TensorSpec


class Digits(nn.Module):
    """8×8 grey images (0 … 16, flat) to ten classes, by a small residual network."""

    signature = Signature(
        inputs=(TensorSpec("image", "FP32", (64,)),),
        outputs=(
            TensorSpec("probabilities", "FP32", (10,), labels=tuple("0123456789")),
            TensorSpec("digit", "INT64", (1,)),
        ),
        max_batch_size=64,
    )

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.stem = nn.Linear(64, width)
        self.hidden = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, image_NP: Tensor) -> Tensor:
        x_NW = functional.gelu(self.stem(image_NP / 16.0))
        x_NW = x_NW + functional.gelu(self.hidden(x_NW))
        return self.head(self.norm(x_NW))

    def loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        logits_NC = self(batch["image"])
        accuracy = (logits_NC.argmax(-1) == batch["digit"]).float().mean()
        return functional.cross_entropy(logits_NC, batch["digit"]), {"accuracy": accuracy}

    def infer(self, image: Tensor) -> Mapping[str, Tensor]:
        probabilities_NC = self(image).softmax(-1)
        return {
            "probabilities": probabilities_NC,
            "digit": torch.argmax(probabilities_NC, -1, keepdim=True),
        }
