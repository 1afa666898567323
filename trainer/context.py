"""Context parallelism: a model whose sequences are cut over ranks, each with all the weights.

Owns the meaning of the words in a class's `context_plan`. Each rank computes its pieces of a
sequence (`trainer.sequence`); where tokens see each other, it gathers all keys and values, whose
gradients are added up and scattered in backward. Invariant: the values are those of whole sequences
up to the order of additions.

Shape suffixes: B batch, H query heads, K key/value heads, T this rank's tokens, D head_dim,
R ranks, L tokens of a piece, S tokens up to the end of a piece.
"""

from __future__ import annotations

import fnmatch
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.errors import BadPlugin
from trainer.sequence import mine

# The optional class attribute {pattern of module names: word}; the words are below.
ATTRIBUTE = "context_plan"


class Positions(nn.Module):
    """Word "positions": a module of x [B, T, ...] that gives the position of each column, and how
    long the sequence is."""

    def __init__(self, rank: int, ranks: int) -> None:
        super().__init__()
        self._mine, self._ranks = mine(rank, ranks), ranks

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        size = x.shape[1] // 2
        each = torch.arange(size, device=x.device)
        return torch.cat([index * size + each for index in self._mine]), x.shape[1] * self._ranks


class Gathered(nn.Module):
    """Word "attend": a module of queries, keys and values [B, heads, T, D], causal, whose queries
    are the last ones where there are fewer."""

    def __init__(self, attend: nn.Module, group: dist.ProcessGroup, rank: int, ranks: int) -> None:
        super().__init__()
        self._attend, self._group = attend, group
        self._mine, self._ranks = mine(rank, ranks), ranks

    def forward(self, q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor) -> Tensor:
        size = q_BHTD.shape[2] // 2
        k_BKSD, v_BKSD = self._all(torch.stack((k_BKTD, v_BKTD)))
        found = []
        for index, q_BHLD in zip(self._mine, q_BHTD.chunk(2, 2), strict=True):
            seen = (index + 1) * size
            found.append(self._attend(q_BHLD, k_BKSD[:, :, :seen], v_BKSD[:, :, :seen]))
        return torch.cat(found, 2)

    # A collective in the middle of a block, whose backward is another.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _all(self, kv_2BKTD: Tensor) -> Tensor:
        """Keys and values of the whole sequence, in its order."""
        kv_R2BKTD: Tensor = _Gather.apply(kv_2BKTD, self._group, self._ranks)  # type: ignore[no-untyped-call]
        first, last = kv_R2BKTD.chunk(2, 4)
        kv_2BKRLD = torch.cat((first, last.flip(0))).movedim(0, 3)
        return kv_2BKRLD.flatten(3, 4)


class _Gather(torch.autograd.Function):
    """All ranks' tensors; in backward, the sum of all ranks' gradients of one's own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup, ranks: int) -> Tensor:
        ctx.group = group
        found = x.new_empty((ranks, *x.shape))
        dist.all_gather_into_tensor(found.view(-1), x.contiguous().view(-1), group=group)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        # Added up in full precision, whatever keys and values are computed in.
        wide = grads[0].float().contiguous()
        found = wide.new_empty(wide.shape[1:])
        dist.reduce_scatter_tensor(found.view(-1), wide.view(-1), group=ctx.group)
        return found.to(grads[0].dtype), None, None


def cut_context(
    model: nn.Module, name: str, group: dist.ProcessGroup, rank: int, ranks: int
) -> None:
    """Replaces the modules of the plan, in place. Raises BadPlugin for a class that has none."""
    plan = getattr(model, ATTRIBUTE, None)
    if plan is None:
        raise BadPlugin(
            f"parallel.cp: {name} has no attribute {ATTRIBUTE!r} that says where its tokens see "
            "each other; set parallel.cp = 1"
        )
    for pattern, word in plan.items():
        paths = [path for path, _ in model.named_modules() if fnmatch.fnmatch(path, pattern)]
        if not paths:
            raise BadPlugin(f"model.class: {ATTRIBUTE!r} names {pattern!r}, which it has not")
        for path in paths:
            parent, _, leaf = path.rpartition(".")
            old = model.get_submodule(path)
            setattr(model.get_submodule(parent), leaf, _replaced(word, old, group, rank, ranks))


def _replaced(
    word: str, module: nn.Module, group: dist.ProcessGroup, rank: int, ranks: int
) -> nn.Module:
    match word:
        case "positions":
            return Positions(rank, ranks)
        case "attend":
            return Gathered(module, group, rank, ranks)
    raise BadPlugin(f"model.class: {ATTRIBUTE!r} has the word {word!r}, which means nothing")
