"""Low-rank updates (LoRA, Hu et al., 2021): a few small matrices learn, the model stays.

Owns the layer and where it goes: each chosen `nn.Linear` keeps its weight, frozen, and adds
scale · B · A. Invariant: with its first values the model computes what it did before (B is zero),
and the tensors that were there keep their names.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.errors import BadPlugin
from trainer.shards import place, wrapper

A, B = "lora_a", "lora_b"


class LowRank(nn.Module):
    """A frozen Linear and its update. `scale` is alpha / rank."""

    def __init__(self, linear: nn.Linear, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach(), requires_grad=False)
        self.bias = None
        if linear.bias is not None:
            self.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
        outward, inward = linear.weight.shape
        device, dtype = linear.weight.device, linear.weight.dtype
        self.lora_a = nn.Parameter(torch.empty(rank, inward, device=device, dtype=dtype))
        self.lora_b = nn.Parameter(torch.zeros(outward, rank, device=device, dtype=dtype))
        if device.type != "meta":
            fill_low_rank(A, self.lora_a.data, None)
        self._scale, self._dropout = scale, dropout

    def forward(self, x: Tensor) -> Tensor:
        thin = x * self._mask(x) if self._dropout and self.training else x
        update = functional.linear(functional.linear(thin, self.lora_a), self.lora_b)
        return functional.linear(x, self.weight, self.bias) + self._scale * update

    def _mask(self, x: Tensor) -> Tensor:
        """What is dropped, drawn for the whole `x`: ranks that cut it draw the same and keep their
        own part, so that together they drop what one rank would."""
        ones = torch.ones(x.shape, dtype=x.dtype, device=x.device)
        whole = functional.dropout(ones, self._dropout)
        return wrapper(x)(whole[place(x).slices])


def add_low_rank(
    model: nn.Module, targets: Sequence[str], rank: int, scale: float, dropout: float
) -> None:
    """Freezes the model and puts updates on the Linears that a pattern names ("*.q_proj").

    Raises BadPlugin where a pattern names none.
    """
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    chosen: dict[str, nn.Linear] = {}
    for pattern in targets:
        found = {name: m for name, m in linears.items() if fnmatch.fnmatch(name, pattern)}
        if not found:
            raise BadPlugin(f"lora.targets: no Linear of the model matches {pattern!r}")
        chosen |= found
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name, linear in chosen.items():
        if not _alone(model, linear):
            raise BadPlugin(f"lora.targets: {name} is tied to another module")
        parent, _, leaf = name.rpartition(".")
        layer = LowRank(linear, rank, scale, dropout)
        setattr(model.get_submodule(parent), leaf, layer)


def fill_low_rank(name: str, tensor: Tensor, generator: torch.Generator | None) -> bool:
    """First values of an update's tensor; False where the name is of none."""
    with torch.no_grad():
        if name.endswith(B):
            tensor.zero_()
        elif name.endswith(A):
            bound = 1 / math.sqrt(tensor.shape[1])
            tensor.uniform_(-bound, bound, generator=generator)
        else:
            return False
    return True


def _alone(model: nn.Module, linear: nn.Linear) -> bool:
    holders = [m for m in model.modules() if any(p is linear.weight for p in m.parameters(False))]
    return len(holders) == 1
