"""Ray Serve's own way to serve the small network: one deployment with `serve.batch`.

Tuned as its performance guide says: an async method, room for as many requests as may come, a short
window, and the flags of its guide to high throughput (set where this is launched).
"""

from __future__ import annotations

import argparse
import signal
from typing import Any

import ray
import torch
from ray import serve
from starlette.requests import Request

from bench.models.mlp import MAX_BATCH, Mlp


@serve.deployment(max_ongoing_requests=1000)
class Network:
    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.model = Mlp().eval()

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.001)
    async def infer(self, rows: list[list[float]]) -> list[list[float]]:
        with torch.inference_mode():
            return self.model(torch.tensor(rows)).tolist()

    async def __call__(self, request: Request) -> dict[str, Any]:
        row = (await request.json())["inputs"][0]["data"]
        output = await self.infer(row)
        tensor = {"name": "y", "datatype": "FP32", "shape": [1, len(output)], "data": output}
        return {"model_name": "mlp", "outputs": [tensor]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--temp", required=True)
    args = parser.parse_args()
    ray.init(include_dashboard=False, _temp_dir=args.temp, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": args.port})
    serve.run(Network.bind(), route_prefix="/v2/models/mlp/infer")
    print("serving", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
