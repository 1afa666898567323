"""What requests of variable shape count in a batch, and which of them should share one.

Pure arithmetic over a signature and shapes. Padding makes every row as long as the longest of its
batch, so requests share a batch only within a bucket of lengths, which bounds the padding by the
data. What is joined end to end needs no buckets.
"""

from __future__ import annotations

from math import prod

from backends.wire import Signature, length_bucket
from gateway.request import TensorRequest


class Sizes:
    """`buckets`: whether the model's requests are told apart by `bucket` at all."""

    def __init__(self, signature: Signature) -> None:
        self.buckets = signature.ragged == "pad"
        # By input: the first variable dimension (the batch is dimension 0); None where none is.
        self._axes = [
            next((axis for axis, dim in enumerate(spec.shape, start=1) if dim < 0), None)
            for spec in signature.inputs
        ]

    def bucket(self, request: TensorRequest) -> tuple[int, ...]:
        """One for each input of variable length; requests share a batch where all are equal."""
        return tuple(
            [
                length_bucket(tensor.shape[axis])
                for tensor, axis in zip(request.inputs, self._axes, strict=True)
                if axis is not None
            ]
        )

    def elements(self, request: TensorRequest) -> int:
        """Elements of all inputs, as long as padding to the bucket's end makes them."""
        total = 0
        for tensor, axis in zip(request.inputs, self._axes, strict=True):
            count = prod(tensor.shape)
            if self.buckets and axis is not None and tensor.shape[axis]:
                length = tensor.shape[axis]
                count = count // length << length_bucket(length)
            total += count
        return max(total, 1)
