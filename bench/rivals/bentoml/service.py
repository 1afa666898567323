"""BentoML's own way to serve the small network: one batchable endpoint, rows in and out.

As its documentation has it: adaptive batching, which learns its window by itself, within a latency
bound wide enough that nothing is refused.
"""

from __future__ import annotations

import bentoml
import numpy as np
import torch

from bench.models.mlp import MAX_BATCH, Mlp


@bentoml.service(workers=1, traffic={"timeout": 30})
class Network:
    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.model = Mlp().eval()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH)
    def infer(self, x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return self.model(torch.from_numpy(x.astype(np.float32))).numpy()
