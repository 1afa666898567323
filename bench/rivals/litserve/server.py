"""LitServe's own way to serve the small network: one batching worker, JSON in and out.

Tuned as its documentation says: batching with a short window, and work done per batch in `predict`.
"""

from __future__ import annotations

import argparse
from typing import Any

import litserve as ls
import torch

from bench.models.mlp import MAX_BATCH, Mlp

WINDOW_S = 0.001


class Api(ls.LitAPI):
    def setup(self, device: str) -> None:
        torch.set_num_threads(1)
        self.model = Mlp().eval()

    # It takes an annotation of `request` for the request's schema.
    def decode_request(self, request):  # type: ignore[no-untyped-def]
        return request["inputs"][0]["data"]

    def batch(self, inputs: list[list[float]]) -> torch.Tensor:
        return torch.tensor(inputs)

    def predict(self, batch_NI: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return self.model(batch_NI)

    def unbatch(self, output: torch.Tensor) -> list[list[float]]:
        return output.tolist()

    def encode_response(self, output: list[float]) -> dict[str, Any]:
        tensor = {"name": "y", "datatype": "FP32", "shape": [1, len(output)], "data": output}
        return {"model_name": "mlp", "outputs": [tensor]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    api = Api(max_batch_size=MAX_BATCH, batch_timeout=WINDOW_S, api_path="/v2/models/mlp/infer")
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=1)
    port = parser.parse_args().port
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")
