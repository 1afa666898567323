"""An answer as the body of an infer response.

Pure: the form of each output was decided when the request was parsed. Binary outputs are passed on
as they are, in the order of the JSON's list; JSON outputs are flat lists. FP32 is written as the
exact double that it is, which reads back as the same FP32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from backends.wire import Buffer, TensorSpec
from gateway.errors import BadRequest, ReplicaNonsense
from gateway.oip.classification import classify
from gateway.oip.codec import Codec
from gateway.oip.parse import InferRequest
from gateway.oip.values import BadValue
from gateway.request import Answer, Tensor

JSON = b"application/json"
BINARY = b"application/octet-stream"


class Rendered(NamedTuple):
    """`fields`: header lines that belong to the body."""

    content_type: bytes
    fields: bytes
    body: bytes | list[Buffer]


def render_infer(request: InferRequest, model_name: str, answer: Answer, codec: Codec) -> Rendered:
    """Raises BadRequest where an output cannot take the form that was asked for, and
    ReplicaNonsense where the answer is not what the signature says."""
    outputs: list[dict[str, Any]] = []
    buffers: list[Buffer] = []
    binary = False
    for at, as_binary, classes in request.wanted:
        tensor = _tensor(answer, at, codec)
        if classes:
            tensor = _classes(tensor, classes, codec.outputs[at], codec)
        name, datatype, shape, data = tensor
        entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": shape}
        if as_binary:
            binary = True
            buffers.append(data)
            entry["parameters"] = {"binary_data_size": len(data)}
        else:
            entry["data"] = _values(tensor, codec)
        outputs.append(entry)
    document: dict[str, Any] = {"model_name": model_name, "model_version": answer.version}
    if request.id is not None:
        document["id"] = request.id
    document["outputs"] = outputs
    head = orjson.dumps(document)
    if not binary:
        return Rendered(JSON, b"", head)
    return Rendered(
        BINARY, b"inference-header-content-length: %d\r\n" % len(head), [head, *buffers]
    )


def _tensor(answer: Answer, at: int, codec: Codec) -> Tensor:
    """By name; almost always the answer's order is the signature's."""
    name = codec.outputs[at].name
    outputs = answer.outputs
    if at < len(outputs) and outputs[at].name == name:
        return outputs[at]
    for tensor in outputs:
        if tensor.name == name:
            return tensor
    raise ReplicaNonsense(f"the replica's answer lacks the output {name!r} of its signature")


def _values(tensor: Tensor, codec: Codec) -> Any:
    try:
        return codec.values[tensor.datatype].unpack(tensor.data)
    except BadValue as error:
        if tensor.datatype == "BYTES":
            raise BadRequest(
                f"output {tensor.name!r}: {error}; ask for it with binary_data", param="outputs"
            ) from error
        raise ReplicaNonsense(f"output {tensor.name!r}: {error}") from error


def _classes(tensor: Tensor, classes: int, spec: TensorSpec, codec: Codec) -> Tensor:
    try:
        return classify(tensor, classes, spec.labels, codec.values[tensor.datatype])
    except BadValue as error:
        raise ReplicaNonsense(f"output {tensor.name!r}: {error}") from error
