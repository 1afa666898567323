"""Linear maps of a network that only serves: y = x · wᵀ + b, in the layout that the device likes.

Owns the layouts. Invariant: `load_` writes in place: what a captured graph refers to stays where it
is.

Shape suffixes: T tokens, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class Linear(Protocol):
    def load_(self, weight_OI: Tensor, bias_O: Tensor | None) -> None: ...
    def __call__(self, x_TI: Tensor) -> Tensor: ...
    def tensors(self) -> list[Tensor]: ...


class DenseLinear:
    """As torch has it."""

    def __init__(
        self, inputs: int, outputs: int, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.weight_OI = torch.zeros(outputs, inputs, dtype=dtype, device=device)
        self.bias_O = torch.zeros(outputs, dtype=dtype, device=device) if bias else None

    def load_(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        self.weight_OI.copy_(weight_OI)
        if self.bias_O is not None and bias_O is not None:
            self.bias_O.copy_(bias_O)

    def __call__(self, x_TI: Tensor) -> Tensor:
        return F.linear(x_TI, self.weight_OI, self.bias_O)

    def tensors(self) -> list[Tensor]:
        return [self.weight_OI, *_there(self.bias_O)]


class PackedLinear:
    """bfloat16 on a CPU, in oneDNN's blocked layout: a token's worth of work then runs at the speed
    of memory, three times faster than from rows (SmolLM2's shapes, 2 cores with AVX512-BF16)."""

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        self._bias_O = torch.zeros(outputs, dtype=torch.bfloat16) if bias else None
        self.load_(torch.zeros(outputs, inputs, dtype=torch.bfloat16), None)

    @staticmethod
    def available() -> bool:
        return bool(
            torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
            and torch.ops.mkldnn._is_mkldnn_bf16_supported()
            and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        )

    def load_(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        plain_OI = weight_OI.to(torch.bfloat16).contiguous()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(plain_OI, None)
        if self._bias_O is not None and bias_O is not None:
            self._bias_O.copy_(bias_O)

    def __call__(self, x_TI: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(  # type: ignore[no-any-return]
            x_TI, self._packed, self._bias_O, "none", [], ""
        )

    def tensors(self) -> list[Tensor]:
        return [self._packed, *_there(self._bias_O)]


class Int8Linear:
    """Weights in a byte each, with a scale per output; the sums are those of the activations'
    dtype. It saves memory; what it saves in time is for the kernels that replace it."""

    def __init__(
        self, inputs: int, outputs: int, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._weight_OI = torch.zeros(outputs, inputs, dtype=torch.int8, device=device)
        self._scale_O = torch.zeros(outputs, dtype=torch.float32, device=device)
        self._bias_O = torch.zeros(outputs, dtype=dtype, device=device) if bias else None

    def load_(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        weight_OI, scale_O = quantised(weight_OI)
        self._weight_OI.copy_(weight_OI)
        self._scale_O.copy_(scale_O)
        if self._bias_O is not None and bias_O is not None:
            self._bias_O.copy_(bias_O)

    def __call__(self, x_TI: Tensor) -> Tensor:
        y_TO = F.linear(x_TI, self._weight_OI.to(x_TI.dtype)).float() * self._scale_O
        if self._bias_O is not None:
            y_TO += self._bias_O
        return y_TO.to(x_TI.dtype)

    def tensors(self) -> list[Tensor]:
        return [self._weight_OI, self._scale_O, *_there(self._bias_O)]


def _there(tensor: Tensor | None) -> list[Tensor]:
    return [] if tensor is None else [tensor]


def quantised(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """int8 weights and the scale of each output: the largest of a row becomes ±127."""
    wide_OI = weight_OI.float()
    scale_O = wide_OI.abs().amax(1).clamp_(min=1e-12) / 127
    return (wide_OI / scale_O[:, None]).round_().to(torch.int8), scale_O
