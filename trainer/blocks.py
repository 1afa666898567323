"""The blocks of a model (the elements of its outermost module lists): what is done to each alike.

Owns recomputation of activations and compilation. Both leave the names of modules and tensors as
they are. Invariant: values do not change by recomputation, not in the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            yield from (block for block in child if any(True for _ in block.parameters()))
        else:
            yield from blocks(child)


def recompute_blocks(model: nn.Module, how: str) -> None:
    """`how` is "none", "full" or "selective": then matrix products and attention are kept."""
    if how == "none":
        return
    from torch.distributed._composable.checkpoint_activation import checkpoint

    options: dict[str, Any] = {} if how == "full" else {"context_fn": _selective}
    for block in blocks(model):
        checkpoint(block, **options)


def compile_blocks(model: nn.Module) -> None:
    for block in blocks(model):
        block.compile()


def _selective() -> Any:
    from torch.utils.checkpoint import create_selective_checkpoint_contexts

    aten = torch.ops.aten
    kept = [
        aten.mm.default,
        aten.addmm.default,
        aten.bmm.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
    ]
    return create_selective_checkpoint_contexts(kept)  # type: ignore[no-untyped-call]
