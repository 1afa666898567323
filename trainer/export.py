"""What is published of a training: which tensors a checkpoint's model files hold, and from what.

Owns the table of the served model, and how each of its tensors comes from staged ones: as it is,
in another dtype, with a low-rank update merged, or as its moving average. Invariant: the table does
not depend on the ranks; the served class loads exactly what it says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.lora import A, B
from trainer.state import EMA, MODEL, weights

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Exported:
    """One tensor of the files. `sources` are names of staged tensors, `scale` is of the update."""

    sources: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    finite: bool  # whether it must be; a buffer may hold the infinities of a mask
    scale: float = 0.0

    def make(self, whole: Sequence[Tensor]) -> Tensor:
        if len(whole) == 1:
            return whole[0].to(self.dtype)
        weight, a, b = (tensor.float() for tensor in whole)
        return torch.addmm(weight, b, a, alpha=self.scale).to(self.dtype)

    @property
    def nbytes(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Table:
    """The served model's tensors, and aliases of them."""

    tensors: Mapping[str, Exported]
    ties: Mapping[str, str]

    @property
    def forms(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Aliases included."""
        own = {name: (tensor.shape, tensor.dtype) for name, tensor in self.tensors.items()}
        return own | {alias: own[name] for alias, name in self.ties.items()}


def export_table(
    trained: nn.Module, served: nn.Module, *, dtype: str | None, scale: float, ema: bool
) -> Table:
    """`trained` is the whole model as it is trained, `served` as it is loaded; both may be on meta.
    `scale` is of low-rank updates, which `trained` may have."""
    staged, known = weights(trained).stored, weights(served)
    tensors: dict[str, Exported] = {}
    for name, tensor in known.stored.items():
        parameter = isinstance(tensor, nn.Parameter)
        root = EMA if ema and parameter and staged[name].requires_grad else MODEL
        parts = [name]
        stem = name.removesuffix("weight")
        if f"{stem}{A}" in staged:
            parts += [f"{stem}{A}", f"{stem}{B}"]
        floating = parameter and tensor.is_floating_point()
        tensors[name] = Exported(
            tuple(root + part if part == name else _root(ema) + part for part in parts),
            tuple(tensor.shape),
            DTYPES[dtype] if dtype is not None and floating else tensor.dtype,
            floating,
            scale,
        )
    return Table(tensors, known.ties)


def _root(ema: bool) -> str:
    return EMA if ema else MODEL
