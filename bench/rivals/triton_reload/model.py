"""Triton's Python backend: the reload scenario's network, from the weights beside this file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

# ruff: noqa: E402
# The backend's interpreter is one of its own: it knows no virtual environment, nor PYTHONPATH.
sys.path[:0] = os.environ["TRITON_PYTHON_PACKAGES"].split(os.pathsep)

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

from bench.models.reload import Stamped


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        torch.set_num_threads(1)
        weights = torch.load(Path(__file__).parent / "weights.pt", weights_only=True)
        layers = sum(name.startswith("layers.") for name in weights)
        self.model = Stamped(layers).eval()
        self.model.load_state_dict(weights)

    def execute(self, requests: list[Any]) -> list[Any]:
        rows = [pb_utils.get_input_tensor_by_name(r, "x").as_numpy() for r in requests]
        with torch.inference_mode():
            y_NO = self.model.infer(torch.from_numpy(np.concatenate(rows)))["y"].numpy()
        ends = np.cumsum([len(x_NI) for x_NI in rows])[:-1]
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("y", part)])
            for part in np.split(y_NO, ends)
        ]
