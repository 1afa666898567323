"""Tensor types as both ends of the wire know them: datatypes, specs, a model's signature.

Owns names and validation, never values; loads neither numpy nor torch. The datatypes are those of
the Open Inference Protocol v2, with Triton's BF16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple


class Datatype(NamedTuple):
    """An Open Inference Protocol datatype; `code` is its `struct` format, '' if it has none."""

    name: str
    size: int
    code: str
    numpy: str


DATATYPES: dict[str, Datatype] = {
    d.name: d
    for d in (
        Datatype("BOOL", 1, "?", "bool"),
        Datatype("UINT8", 1, "B", "uint8"),
        Datatype("UINT16", 2, "H", "uint16"),
        Datatype("UINT32", 4, "I", "uint32"),
        Datatype("UINT64", 8, "Q", "uint64"),
        Datatype("INT8", 1, "b", "int8"),
        Datatype("INT16", 2, "h", "int16"),
        Datatype("INT32", 4, "i", "int32"),
        Datatype("INT64", 8, "q", "int64"),
        Datatype("FP16", 2, "e", "float16"),
        Datatype("FP32", 4, "f", "float32"),
        Datatype("FP64", 8, "d", "float64"),
        Datatype("BF16", 2, "", ""),
        # u32 length and payload for each element; size 0 here: it varies.
        Datatype("BYTES", 0, "", "object"),
    )
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One named input or output. `shape` leaves out the batch dimension; -1 is variable."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    # Class names of an output, for the `classification` parameter; empty where there are none.
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.datatype not in DATATYPES:
            known = ", ".join(DATATYPES)
            raise ValueError(f"{self.name}: datatype {self.datatype!r} is not one of {known}")
        if any(dim < -1 for dim in self.shape):
            raise ValueError(f"{self.name}: shape {self.shape} has a dimension below -1")

    def to_json(self) -> dict[str, Any]:
        spec: dict[str, Any] = {
            "name": self.name,
            "datatype": self.datatype,
            "shape": list(self.shape),
        }
        if self.labels:
            spec["labels"] = list(self.labels)
        return spec

    @classmethod
    def from_json(cls, spec: dict[str, Any]) -> TensorSpec:
        labels = tuple(spec.get("labels", ()))
        return cls(spec["name"], spec["datatype"], tuple(spec["shape"]), labels)


@dataclass(frozen=True, slots=True)
class Signature:
    """What a tensor model takes and gives; every tensor has the batch as its first dimension.

    `ragged` says how requests whose variable dimensions differ may share a batch: "refuse" (equal
    shapes only), "pad" (zero-padded to the longest in the batch, with those of the same
    `length_bucket` only; the model gets `<input>_lengths`, an INT32 [batch], for every padded
    input), or "concat" (joined along the first variable
    dimension; the model gets `<input>_lengths` likewise). An output whose rows differ in length is
    cut back to each request's part when the model returns `<output>_lengths` beside it.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int = 64
    ragged: str = "refuse"

    def __post_init__(self) -> None:
        if self.max_batch_size < 1:
            raise ValueError(f"max_batch_size is {self.max_batch_size}; it must be at least 1")
        if self.ragged not in ("refuse", "pad", "concat"):
            raise ValueError(f"ragged is {self.ragged!r}; expected refuse, pad or concat")

    def to_json(self) -> dict[str, Any]:
        return {
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
            "max_batch_size": self.max_batch_size,
            "ragged": self.ragged,
        }

    @classmethod
    def from_json(cls, signature: dict[str, Any]) -> Signature:
        return cls(
            tuple(TensorSpec.from_json(spec) for spec in signature["inputs"]),
            tuple(TensorSpec.from_json(spec) for spec in signature["outputs"]),
            signature["max_batch_size"],
            signature["ragged"],
        )


def length_bucket(length: int) -> int:
    """n for lengths above 2^(n-1) up to 2^n: within one, padding at most doubles a row."""
    return max(length - 1, 0).bit_length()
