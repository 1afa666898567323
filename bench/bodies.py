"""What a scenario's request and answer look like on the wire, for each way to write them."""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray


def oip_request(x_NI: NDArray[np.float32]) -> bytes:
    """JSON of the Open Inference Protocol."""
    tensor = {"name": "x", "shape": list(x_NI.shape), "datatype": "FP32", "data": digits(x_NI)}
    return json.dumps({"inputs": [tensor]}).encode()


def oip_answer(body: bytes) -> NDArray[np.float32]:
    """Raises ValueError, LookupError, TypeError."""
    output = json.loads(body)["outputs"][0]
    return np.array(output["data"], np.float32).reshape(output["shape"])


def rows_request(x_NI: NDArray[np.float32]) -> bytes:
    """BentoML's: the argument by its name, a list of rows."""
    return json.dumps({"x": np.array(digits(x_NI)).reshape(x_NI.shape).tolist()}).encode()


def rows_answer(body: bytes) -> NDArray[np.float32]:
    """Raises ValueError, TypeError."""
    return np.array(json.loads(body), np.float32)


def digits(values: NDArray[np.float32]) -> list[float]:
    """As a client writes float32 values in JSON: the shortest digits that read back."""
    return [float(str(value)) for value in values.ravel()]
