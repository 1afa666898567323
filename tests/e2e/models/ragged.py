"""Models whose inputs vary in length: padded to the longest of a batch, or joined end to end."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from backends.wire import Signature, TensorSpec

_INPUTS = (TensorSpec("x", "FP32", (-1,)),)
_OUTPUTS = (TensorSpec("sum", "FP32", (1,)), TensorSpec("width", "INT64", (1,)))


class PaddedSums:
    """The sum of each row, and how long its batch was padded to."""

    signature = Signature(_INPUTS, _OUTPUTS, max_batch_size=32, ragged="pad")

    def infer(self, x: Tensor, x_lengths: Tensor) -> Mapping[str, Tensor]:
        mask = torch.arange(x.shape[1])[None] < x_lengths[:, None]
        width = torch.full((len(x), 1), x.shape[1])
        return {"sum": (x * mask).sum(1, keepdim=True), "width": width}


class JoinedSums:
    """The same without padding."""

    signature = Signature(_INPUTS, _OUTPUTS, max_batch_size=32, ragged="concat")

    def infer(self, x: Tensor, x_lengths: Tensor) -> Mapping[str, Tensor]:
        parts = torch.split(x, x_lengths.tolist())
        sums = torch.stack([part.sum() for part in parts])[:, None]
        return {"sum": sums, "width": x_lengths[:, None].long()}
