"""A network whose every answer tells which weights made it, for the reload scenario."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from backends.wire import Signature, TensorSpec

WIDTH = 1024


class Stamped(nn.Module):
    """y = [stamp of the first layer, x through all layers and back, stamp of the last].

    The two stamps are parameters at both ends of the checkpoint: an answer in which they differ was
    made of two versions.
    """

    signature = Signature(
        inputs=(TensorSpec("x", "FP32", (8,)),),
        outputs=(TensorSpec("y", "FP32", (3,)),),
        max_batch_size=64,
    )

    def __init__(self, layers: int = 8) -> None:
        super().__init__()
        self.a_first = nn.Parameter(torch.zeros(1))
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers))
        self.z_last = nn.Parameter(torch.zeros(1))

    def infer(self, x: Tensor) -> Mapping[str, Tensor]:
        first = self.a_first.clone()
        wide = x.repeat(1, WIDTH // x.shape[1])
        # One layer's time is enough for a service; the others are there to be loaded.
        wide = torch.relu(self.layers[0](wide))
        last = self.z_last
        return {
            "y": torch.cat(
                [first.expand(len(x), 1), wide.mean(1, keepdim=True), last.expand(len(x), 1)], dim=1
            )
        }
