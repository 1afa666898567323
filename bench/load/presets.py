"""Requests for `bench load --preset`, to the models that the examples and the scenarios serve."""

from __future__ import annotations

import json
import random
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from bench.load.spec import LoadSpec

JSON = {"content-type": "application/json"}


@dataclass(frozen=True, slots=True)
class Preset:
    """`path` is used where the URL has none."""

    summary: str
    path: str
    make: Callable[[random.Random], tuple[bytes, Mapping[str, str]]]


def _json(name: str, values: list[float]) -> tuple[bytes, Mapping[str, str]]:
    tensor = {"name": name, "shape": [1, len(values)], "datatype": "FP32", "data": values}
    return json.dumps({"inputs": [tensor]}).encode(), JSON


def binary(
    name: str, shape: list[int], values: bytes, *, binary_answer: bool = True
) -> tuple[bytes, Mapping[str, str]]:
    """A request with one FP32 tensor behind the JSON, and the answer's tensors likewise or not."""
    tensor = {
        "name": name,
        "shape": shape,
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(values)},
    }
    asked = {"inputs": [tensor], "parameters": {"binary_data_output": binary_answer}}
    head = json.dumps(asked).encode()
    headers = {
        "content-type": "application/octet-stream",
        "inference-header-content-length": str(len(head)),
    }
    return head + values, headers


def _mlp(rng: random.Random) -> tuple[bytes, Mapping[str, str]]:
    return _json("x", [round(rng.gauss(0, 1), 6) for _ in range(10)])


def _digits(rng: random.Random) -> tuple[bytes, Mapping[str, str]]:
    return _json("image", [float(rng.randrange(17)) for _ in range(64)])


def _image(rng: random.Random) -> tuple[bytes, Mapping[str, str]]:
    values = array("f", [rng.random()]) * (3 * 224 * 224)
    return binary("image", [1, 3, 224, 224], values.tobytes())


PRESETS = {
    "mlp": Preset("10 numbers as JSON", "/v2/models/mlp/infer", _mlp),
    "digits": Preset("the demo's 8×8 image as JSON", "/v2/models/digits/infer", _digits),
    "image": Preset("224×224 pixels, 600 KB binary", "/v2/models/image/infer", _image),
}


def chat(model: str, prompt: str, max_tokens: int, *, stream: bool) -> bytes:
    """An OpenAI chat completion; a stream also tells its usage."""
    asked = {"model": model, "messages": [{"role": "user", "content": prompt}]}
    found = {**asked, "max_tokens": max_tokens, "stream": stream}
    if stream:
        found["stream_options"] = {"include_usage": True}
    return json.dumps(found).encode()


def as_message(spec: LoadSpec, headers: Mapping[str, str]) -> LoadSpec:
    """An OIP request in JSON as a message of `/ws`, to the model in its path; `headers` are those
    of the handshake."""
    parts = urlsplit(spec.url)
    model = parts.path.removeprefix("/v2/models/").removesuffix("/infer")
    found = {"type": "infer", "id": "1", "model_name": model, **json.loads(spec.body)}
    url = parts._replace(scheme="ws", path="/ws").geturl()
    return replace(spec, mode="ws", url=url, body=json.dumps(found).encode(), headers=headers)


def with_preset(spec: LoadSpec, preset: Preset) -> LoadSpec:
    body, headers = preset.make(random.Random(spec.seed))
    bare = urlsplit(spec.url).path in ("", "/")
    url = spec.url.rstrip("/") + preset.path if bare else spec.url
    return replace(spec, url=url, method="POST", body=body, headers={**headers, **spec.headers})
