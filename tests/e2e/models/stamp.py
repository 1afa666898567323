"""A model whose every answer tells which weights made it, and that can be made to misbehave."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from backends.wire import Signature, TensorSpec

UNLUCKY, SLOW = 13.0, 1000.0


class Stamp(nn.Module):
    """y = [x, stamp]; the stamp is the step in what `publish` writes.

    `UNLUCKY` in a request makes the model raise; a row from `SLOW` on takes that many ms more.
    `ballast` floats make it long to load, `verify_ms` to verify; `raises`: on all but zeros.
    """

    signature = Signature(
        inputs=(TensorSpec("x", "FP32", (1,)),),
        outputs=(TensorSpec("y", "FP32", (2,)),),
        max_batch_size=16,
    )

    def __init__(
        self,
        delay_ms: float = 0.0,
        ballast: int = 0,
        verify_ms: float = 0.0,
        raises: bool = False,
    ) -> None:
        super().__init__()
        self.stamp = nn.Parameter(torch.zeros(1))
        if ballast:
            self.ballast = nn.Parameter(torch.zeros(ballast))
        self.delay_ms, self.verify_ms, self.raises = delay_ms, verify_ms, raises

    def infer(self, x: Tensor) -> Mapping[str, Tensor]:
        if bool((x == UNLUCKY).any()):
            raise ValueError("13 is an unlucky number")
        if self.raises and bool(x.any()):
            raise ValueError("this version is broken")
        if threading.current_thread().name != "device":
            time.sleep(self.verify_ms / 1e3)
        time.sleep((self.delay_ms + float((x - SLOW).clamp(min=0).sum())) / 1e3)
        return {"y": torch.cat([x, self.stamp.expand_as(x)], dim=1)}
