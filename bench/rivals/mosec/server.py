"""mosec's own way to serve the small network: one batching worker, JSON in and out.

Tuned as its README says: batching in the worker (`max_batch_size`), a short `max_wait_time` for a
model this quick, and a faster codec through the `deserialize`/`serialize` hooks.
"""

from __future__ import annotations

import orjson
import torch
from mosec import Server, ValidationError, Worker

from bench.models.mlp import MAX_BATCH, Mlp

# The shortest that it takes: a batch costs far less, and under load batches are full without it.
WAIT_MS = 1


class Inference(Worker):
    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.model = Mlp().eval()

    def deserialize(self, data: bytes) -> list[float]:
        try:
            return orjson.loads(data)["inputs"][0]["data"]
        except (ValueError, LookupError) as error:
            raise ValidationError("expected inputs[0].data") from error

    def forward(self, data: list[list[float]]) -> list[list[float]]:
        with torch.inference_mode():
            return self.model(torch.tensor(data)).tolist()

    def serialize(self, data: list[float]) -> bytes:
        output = {"name": "y", "datatype": "FP32", "shape": [1, len(data)], "data": data}
        return orjson.dumps({"model_name": "mlp", "outputs": [output]})


if __name__ == "__main__":
    server = Server()
    server.append_worker(Inference, num=1, max_batch_size=MAX_BATCH, max_wait_time=WAIT_MS)
    server.run()
