"""The network that serves: a decoder's weights over a paged cache, one `Step` at a time.

Owns the order of the layers, the packed weights, the cache's shape, and the sums over the ranks of
a tensor-parallel replica. What differs by device is in `network_linear` and `attention`. It decides
nothing: which tokens, which pages, which sampling is the engine's. Invariant: `load_` changes
values, never addresses, so captured graphs stay valid.

Shape suffixes: T tokens of the step, L rows whose logits are wanted, V vocabulary, C width,
H query heads, D head_dim, E = (H + 2K) · D, I hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from backends.checkpoint import Manifest
from backends.checkpoint.reading import Pace
from backends.llm.attention import Geometry, Kernels, KVCache, Plan, kernels_for
from backends.llm.attention.kernels import HeadNorms
from backends.llm.network_linear import DenseLinear, Int8Linear, Linear, PackedLinear
from backends.llm.network_weights import (
    EMBEDDING,
    HEAD,
    NORM,
    Share,
    Source,
    check,
    checkpoint_source,
    columns,
    stacked,
)
from backends.llm.step import Step
from backends.models.config import DecoderConfig
from backends.models.rope import frequencies, turns


class Network(Protocol):
    """What the engine runs. One thread at a time; `load_` between steps."""

    @property
    def layers(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def max_context(self) -> int: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...

    def page_bytes(self, page_size: int) -> int:
        """What one page takes on this rank, all layers together."""
        ...

    def new_cache(self, pages: int, page_size: int) -> KVCache:
        """`pages` counts page 0, which is reserved."""
        ...

    def __call__(self, step: Step, cache: KVCache) -> Tensor:
        """[L, V] float32 logits, whole on every rank. Does not wait for the device."""
        ...

    def copy_pages(self, cache: KVCache, sources_M: Tensor, targets_M: Tensor) -> None:
        """What is in pages `sources` is in pages `targets` too, on every rank."""
        ...

    def load_(self, state: Mapping[str, Tensor]) -> None:
        """Takes over the weights: whole tensors under their Hugging Face names. Raises
        UnsupportedModel before anything has changed."""
        ...

    def close(self) -> None:
        """Nothing is run on it any more, here and on the other ranks."""
        ...


class DecoderNetwork:
    """A `Network` for every decoder that `DecoderConfig` describes."""

    # Why it does the work of a faster one here; empty where there is none.
    slow = ""

    def __init__(
        self,
        config: DecoderConfig,
        *,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        kernels: Callable[[Geometry], Kernels] | None = None,
        rank: int = 0,
        world: int = 1,
        group: dist.ProcessGroup | None = None,
        int8: bool = False,
        packs: bool = True,
    ) -> None:
        """Weights are zero until one of the two loads. With `world` > 1, `group` connects the
        ranks; each is called with the same steps. `int8` keeps the maps' weights in a byte each.
        Without `packs`, a CPU has them in the layout of a GPU."""
        self._int8, self._packs = int8, packs
        self.config, self.dtype, self.device = config, dtype, torch.device(device)
        self._share, self._group = Share(config, rank, world), group
        self.layers, self.vocabulary = config.layers, config.vocabulary
        self.kv_heads, self.head_dim = self._share.kv_heads, config.head_dim
        self.max_context = config.context
        geometry = Geometry(self._share.heads, self.kv_heads, self.head_dim, config.norm_eps)
        self._kernels = (kernels or kernels_for(self.device))(geometry)
        self._frequencies_F = frequencies(config.rope, config.head_dim).to(self.device)
        self._embedding_VC = self._zeros(config.vocabulary, config.width)
        self._layers = [_Layer(self, self._share) for _ in range(config.layers)]
        self._norm_C = self._zeros(config.width)
        self._head = self.linear(config.width, self._share.vocabulary, False)

    # ------------------------------------------------------------------------------------- cache

    def page_bytes(self, page_size: int) -> int:
        return 2 * self.layers * self.kv_heads * page_size * self.head_dim * self.dtype.itemsize

    def new_cache(self, pages: int, page_size: int) -> KVCache:
        shape = (self.layers, pages, self.kv_heads, page_size, self.head_dim)
        return KVCache(self._zeros(*shape), self._zeros(*shape))

    @torch.inference_mode()
    def copy_pages(self, cache: KVCache, sources_M: Tensor, targets_M: Tensor) -> None:
        for tensor_NPKZD in cache:
            tensor_NPKZD[:, targets_M] = tensor_NPKZD[:, sources_M]

    # ----------------------------------------------------------------------------------- running

    @torch.inference_mode()
    def __call__(self, step: Step, cache: KVCache, into_LV: Tensor | None = None) -> Tensor:
        """The logits are in `into_LV` (float32), if that is given."""
        # A kernel is launched on the thread's current device, wherever its tensors are.
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            logits_LV = self._run(step, cache)
            return logits_LV.float() if into_LV is None else into_LV.copy_(logits_LV)

    def _run(self, step: Step, cache: KVCache) -> Tensor:
        plan, kernels = self._plan(step, cache), self._kernels
        x_TC: Tensor = self._embedding_VC[step.tokens_T]
        delta_TC: Tensor | None = None
        for i, layer in enumerate(self._layers):
            x_TC, h_TC = kernels.add_norm(x_TC, delta_TC, layer.input_norm_C)
            q_THD = kernels.write_kv(layer.qkv(h_TC), layer.head_norms, i, plan)
            delta_TC = self._summed(layer.output(kernels.attend(q_THD, i, plan)))
            x_TC, h_TC = kernels.add_norm(x_TC, delta_TC, layer.mlp_norm_C)
            delta_TC = self._summed(layer.down(kernels.gate(layer.gate_up(h_TC))))
        assert delta_TC is not None
        rows = step.logits_L
        _, h_LC = kernels.add_norm(x_TC[rows], delta_TC[rows], self._norm_C)
        return self._whole(self._head(h_LC))

    def _plan(self, step: Step, cache: KVCache) -> Plan:
        cos_TD, sin_TD = turns(step.positions_T, self._frequencies_F, self.config.rope)
        return Plan(step, cache, cos_TD.to(self.dtype), sin_TD.to(self.dtype))

    def _summed(self, x: Tensor) -> Tensor:
        if self._share.world > 1:
            dist.all_reduce(x, group=self._group)
        return x

    def _whole(self, part_LV: Tensor) -> Tensor:
        if not self._share.splits_head:
            return part_LV
        parts_WLV = part_LV.new_empty(self._share.world, *part_LV.shape)
        dist.all_gather_into_tensor(
            parts_WLV.flatten(0, 1), part_LV.contiguous(), group=self._group
        )
        return parts_WLV.transpose(0, 1).flatten(1)

    # ----------------------------------------------------------------------------------- loading

    def load_(self, state: Mapping[str, Tensor]) -> None:
        check(self.config, {name: tensor.shape for name, tensor in state.items()})
        self._load_(state.__getitem__)

    def load_checkpoint_(self, folder: Path, manifest: Manifest, pace: Pace | None = None) -> None:
        """From a committed step, one whole tensor in memory at a time, each with its hash checked.
        Raises what `read_tensors` raises, and UnsupportedModel."""
        check(self.config, {name: shape for name, (shape, _) in manifest.structure.items()})
        self._load_(checkpoint_source(folder, manifest, pace))

    @torch.inference_mode()
    def _load_(self, source: Source) -> None:
        share = self._share
        embedding_VC = source(EMBEDDING)
        self._embedding_VC.copy_(embedding_VC)
        for i, layer in enumerate(self._layers):
            layer.load_(source, f"model.layers.{i}.", share)
        self._norm_C.copy_(source(NORM))
        head_VC = embedding_VC if self.config.tied else source(HEAD)
        self._head.load_(head_VC[share.words()], None)

    @torch.inference_mode()
    def exchange_(self, twin: DecoderNetwork) -> None:
        """Each gets the other's weights, in place; the twin has the same structure and layout, on
        whatever device."""
        for own, its in zip(self._tensors(), twin._tensors(), strict=True):
            kept = own.to(its.device, copy=True)
            own.copy_(its)
            its.copy_(kept)

    def _tensors(self) -> list[Tensor]:
        layers = [tensor for layer in self._layers for tensor in layer.tensors()]
        return [self._embedding_VC, self._norm_C, *self._head.tensors(), *layers]

    def close(self) -> None:
        """Its memory goes with the last that holds it."""

    # ---------------------------------------------------------------------------------- building

    def linear(self, inputs: int, outputs: int, bias: bool) -> Linear:
        if self._int8:
            return Int8Linear(inputs, outputs, bias, self.dtype, self.device)
        fits = self.device.type == "cpu" and self.dtype == torch.bfloat16
        if self._packs and fits and PackedLinear.available():
            return PackedLinear(inputs, outputs, bias)
        return DenseLinear(inputs, outputs, bias, self.dtype, self.device)

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self.dtype, device=self.device)


class _Layer:
    """One layer's weights on one rank."""

    def __init__(self, network: DecoderNetwork, share: Share) -> None:
        c = network.config
        queries, keys = share.heads * c.head_dim, share.kv_heads * c.head_dim
        self.qkv = network.linear(c.width, queries + 2 * keys, c.qkv_bias)
        self.output = network.linear(queries, c.width, c.output_bias)
        self.gate_up = network.linear(c.width, 2 * share.hidden, c.mlp_bias)
        self.down = network.linear(share.hidden, c.width, c.mlp_bias)
        self.input_norm_C, self.mlp_norm_C = network._zeros(c.width), network._zeros(c.width)
        self.head_norms = (
            HeadNorms(network._zeros(c.head_dim), network._zeros(c.head_dim)) if c.qk_norm else None
        )

    def load_(self, source: Source, prefix: str, share: Share) -> None:
        c = share.config
        attention = [
            ("q_proj", share.queries()),
            ("k_proj", share.keys()),
            ("v_proj", share.keys()),
        ]
        self.qkv.load_(*stacked(source, f"{prefix}self_attn.", attention, c.qkv_bias))
        mlp = [("gate_proj", share.hiddens()), ("up_proj", share.hiddens())]
        self.gate_up.load_(*stacked(source, f"{prefix}mlp.", mlp, c.mlp_bias))
        for linear, name, part, bias in (
            (self.output, "self_attn.o_proj", share.queries(), c.output_bias),
            (self.down, "mlp.down_proj", share.hiddens(), c.mlp_bias),
        ):
            linear.load_(*columns(source, prefix + name, part, bias, share.rank))
        self.input_norm_C.copy_(source(f"{prefix}input_layernorm.weight"))
        self.mlp_norm_C.copy_(source(f"{prefix}post_attention_layernorm.weight"))
        if self.head_norms is not None:
            self.head_norms.query_D.copy_(source(f"{prefix}self_attn.q_norm.weight"))
            self.head_norms.key_D.copy_(source(f"{prefix}self_attn.k_norm.weight"))

    def tensors(self) -> list[Tensor]:
        maps = (self.qkv, self.output, self.gate_up, self.down)
        norms = [self.input_norm_C, self.mlp_norm_C, *(self.head_norms or ())]
        return norms + [tensor for one in maps for tensor in one.tensors()]
