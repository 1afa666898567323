"""The digits' model on a slow machine: for trying what uneven workers do to a training.

`SLOW_MS=20` in a process's environment makes each of its forward passes take so much longer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from model import Digits
from torch import Tensor


class Slow(Digits):
    def loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        if self.training:
            time.sleep(float(os.environ.get("SLOW_MS", "0")) / 1000)
        return super().loss(batch)
