"""The seam between the network and what a device does best.

Owns the types: the paged cache, what is computed once a step for all layers, and the calls. Knows
no kernel. Invariant: every implementation gives what `PlainKernels` gives, to rounding.

Shape suffixes: N layers, P pages of the cache, K key/value heads, Z tokens of a page, D head_dim,
T tokens of the step, S sequences, H query heads, C width, E = (H + 2K) · D, I hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from backends.llm.step import Step


class KVCache(NamedTuple):
    """Keys (already turned) and values of all layers. Page 0 belongs to nobody."""

    keys_NPKZD: Tensor
    values_NPKZD: Tensor

    @property
    def pages(self) -> int:
        return self.keys_NPKZD.shape[1]

    @property
    def page_size(self) -> int:
        return self.keys_NPKZD.shape[3]


@dataclass(frozen=True, slots=True)
class Geometry:
    """What one rank computes of each layer."""

    heads: int
    kv_heads: int
    head_dim: int
    eps: float


class HeadNorms(NamedTuple):
    """Qwen3's norms of each query and key head, [D] each."""

    query_D: Tensor
    key_D: Tensor


class Plan(NamedTuple):
    """A step, its cache, and the rotation of its tokens; kernels may extend it."""

    step: Step
    cache: KVCache
    cos_TD: Tensor
    sin_TD: Tensor


class Kernels(Protocol):
    def add_norm(
        self, x_TC: Tensor, delta_TC: Tensor | None, weight_C: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x + delta, and its RMS norm. May write the sum into `x_TC`."""
        ...

    def write_kv(self, qkv_TE: Tensor, norms: HeadNorms | None, layer: int, plan: Plan) -> Tensor:
        """[T, H, D] queries: normed and turned; keys likewise, and with the values in their
        slots."""
        ...

    def attend(self, q_THD: Tensor, layer: int, plan: Plan) -> Tensor:
        """[T, H · D]: each token over its sequence's pages, itself included."""
        ...

    def gate(self, gate_up_TI2: Tensor) -> Tensor:
        """[T, I]: silu of the first half times the second."""
        ...
