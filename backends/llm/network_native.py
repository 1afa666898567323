"""The network on a CPU that has AVX512: each step is one call into C++.

Owns the packed weights and the pointers to them. The arithmetic is that of `DecoderNetwork` with
`PlainKernels`, which is its oracle. Invariant: `load_` writes into the tensors that the pointers
were taken from; the cache's layout is this network's own affair, whole pages may be copied.

Shape suffixes: C width, O outputs, I inputs, B blocks of 32 outputs, L rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from backends.checkpoint import Manifest
from backends.checkpoint.reading import Pace
from backends.llm.attention import KVCache
from backends.llm.native import Library
from backends.llm.native import library as native
from backends.llm.network_linear import quantised
from backends.llm.network_weights import (
    EMBEDDING,
    HEAD,
    NORM,
    Source,
    check,
    checkpoint_source,
    stacked,
)
from backends.llm.step import Step
from backends.models.config import DecoderConfig, UnsupportedModel
from backends.models.rope import frequencies, turns

# Outputs of a packed block; tokens of which a page must have whole groups.
BLOCK, GROUP = 32, 16
MAX_HEAD_DIM = 256
EVERY = slice(None)


class PackedMap:
    """[B, I/2, 32, 2]: bfloat16, or int8 with a scale per output."""

    def __init__(self, inputs: int, outputs: int, bias: bool, int8: bool) -> None:
        blocks = -(-outputs // BLOCK)
        dtype = torch.int8 if int8 else torch.bfloat16
        self._weight = torch.zeros(blocks, inputs // 2, BLOCK, 2, dtype=dtype)
        self._scale_O = torch.zeros(blocks * BLOCK) if int8 else None
        self._bias_O = torch.zeros(blocks * BLOCK, dtype=torch.bfloat16) if bias else None

    def load_(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        missing = len(self._weight) * BLOCK - len(weight_OI)
        if missing:
            weight_OI = torch.cat((weight_OI, weight_OI.new_zeros(missing, weight_OI.shape[1])))
        if self._scale_O is not None:
            weight_OI, scale_O = quantised(weight_OI)
            self._scale_O.copy_(scale_O)
        blocks = weight_OI.view(len(self._weight), BLOCK, -1, 2)
        self._weight.copy_(blocks.transpose(1, 2))
        if self._bias_O is not None and bias_O is not None:
            self._bias_O[: len(bias_O)].copy_(bias_O)

    def pointers(self) -> native.Map:
        return native.Map(_at(self._weight), _at(self._scale_O), _at(self._bias_O))


class NativeNetwork:
    """A `Network` in bfloat16. `int8` halves the weights' bytes; activations stay as they are."""

    dtype = torch.bfloat16
    device = torch.device("cpu")

    def __init__(self, config: DecoderConfig, library: Library, *, int8: bool = False) -> None:
        """Raises UnsupportedModel for shapes that do not fit the vectors; `fits` tells before."""
        if (reason := misfit(config)) is not None:
            raise UnsupportedModel(reason)
        c, self._library = config, library
        self.config, self.layers, self.vocabulary = c, c.layers, c.vocabulary
        self.kv_heads, self.head_dim, self.max_context = c.kv_heads, c.head_dim, c.context
        self._frequencies_F = frequencies(c.rope, c.head_dim)
        self._embedding_VC = torch.zeros(c.vocabulary, c.width, dtype=self.dtype)
        self._norm_C = torch.zeros(c.width, dtype=self.dtype)
        self._head = PackedMap(c.width, c.vocabulary, False, int8)
        self._layers = [_Layer(c, int8) for _ in range(c.layers)]
        # ctypes keeps no hold on what pointers lead to: these attributes do.
        self._pointers = (native.Layer * c.layers)(*(layer.pointers() for layer in self._layers))
        self._model = native.Model(
            *(c.layers, c.width, c.hidden, c.heads, c.kv_heads, c.head_dim, c.vocabulary),
            c.norm_eps,
            _at(self._embedding_VC),
            _at(self._norm_C),
            self._head.pointers(),
            self._pointers,
        )

    # ------------------------------------------------------------------------------------- cache

    def page_bytes(self, page_size: int) -> int:
        return 2 * self.layers * self.kv_heads * page_size * self.head_dim * self.dtype.itemsize

    def new_cache(self, pages: int, page_size: int) -> KVCache:
        """The letters of the shape say how much there is, not where: see `step.cpp`."""
        if not fits_page(page_size):
            raise ValueError(f"page_size {page_size} must be a multiple of {GROUP}")
        shape = (self.layers, pages, self.kv_heads, page_size, self.head_dim)
        return KVCache(torch.zeros(shape, dtype=self.dtype), torch.zeros(shape, dtype=self.dtype))

    def copy_pages(self, cache: KVCache, sources_M: Tensor, targets_M: Tensor) -> None:
        for tensor in cache:
            tensor[:, targets_M] = tensor[:, sources_M]

    # ----------------------------------------------------------------------------------- running

    @torch.inference_mode()
    def __call__(self, step: Step, cache: KVCache) -> Tensor:
        logits_LV = torch.empty(len(step.logits_L), self.vocabulary)
        turned = turns(step.positions_T, self._frequencies_F, self.config.rope)
        # Named here so that they live until the call is over.
        arrays = tuple(
            tensor.contiguous()
            for tensor in (
                *(step.tokens_T, step.slots_T, step.logits_L),
                *(step.starts_S1, step.contexts_S, step.pages_SP),
                *(part.to(self.dtype) for part in turned),
                *cache,
                logits_LV,
            )
        )
        self._library.step(
            self._model,
            native.Step(
                len(step.tokens_T),
                len(step.contexts_S),
                len(step.logits_L),
                step.pages_SP.shape[1],
                cache.page_size,
                cache.pages,
                torch.get_num_threads(),
                *(array.data_ptr() for array in arrays),
            ),
        )
        return logits_LV

    # ----------------------------------------------------------------------------------- loading

    def load_(self, state: Mapping[str, Tensor]) -> None:
        check(self.config, {name: tensor.shape for name, tensor in state.items()})
        self._load_(state.__getitem__)

    def load_checkpoint_(self, folder: Path, manifest: Manifest, pace: Pace | None = None) -> None:
        """As `DecoderNetwork.load_checkpoint_`."""
        check(self.config, {name: shape for name, (shape, _) in manifest.structure.items()})
        self._load_(checkpoint_source(folder, manifest, pace))

    @torch.inference_mode()
    def _load_(self, source: Source) -> None:
        embedding_VC = source(EMBEDDING)
        self._embedding_VC.copy_(embedding_VC)
        for i, layer in enumerate(self._layers):
            layer.load_(source, f"model.layers.{i}.")
        self._norm_C.copy_(source(NORM))
        self._head.load_(embedding_VC if self.config.tied else source(HEAD), None)

    def close(self) -> None:
        """Its memory goes with the last that holds it."""


class _Layer:
    def __init__(self, c: DecoderConfig, int8: bool) -> None:
        queries, keys = c.heads * c.head_dim, c.kv_heads * c.head_dim
        self._config = c
        self._qkv = PackedMap(c.width, queries + 2 * keys, c.qkv_bias, int8)
        self._output = PackedMap(queries, c.width, c.output_bias, int8)
        self._gate_up = PackedMap(c.width, 2 * c.hidden, c.mlp_bias, int8)
        self._down = PackedMap(c.hidden, c.width, c.mlp_bias, int8)
        sizes = {"input_layernorm": c.width, "post_attention_layernorm": c.width}
        if c.qk_norm:
            sizes |= {"self_attn.q_norm": c.head_dim, "self_attn.k_norm": c.head_dim}
        self._norms = {n: torch.zeros(size, dtype=torch.bfloat16) for n, size in sizes.items()}

    def load_(self, source: Source, prefix: str) -> None:
        c = self._config
        parts = [(f"self_attn.{name}_proj", EVERY) for name in "qkv"]
        self._qkv.load_(*stacked(source, prefix, parts, c.qkv_bias))
        parts = [("mlp.gate_proj", EVERY), ("mlp.up_proj", EVERY)]
        weight_OI, bias_O = stacked(source, prefix, parts, c.mlp_bias)
        self._gate_up.load_(
            _alternating(weight_OI), None if bias_O is None else _alternating(bias_O)
        )
        for packed, name, bias in (
            (self._output, "self_attn.o_proj", c.output_bias),
            (self._down, "mlp.down_proj", c.mlp_bias),
        ):
            packed.load_(*stacked(source, prefix, [(name, EVERY)], bias))
        for name, norm in self._norms.items():
            norm.copy_(source(f"{prefix}{name}.weight"))

    def pointers(self) -> native.Layer:
        norms = self._norms
        return native.Layer(
            _at(norms["input_layernorm"]),
            _at(norms["post_attention_layernorm"]),
            _at(norms.get("self_attn.q_norm")),
            _at(norms.get("self_attn.k_norm")),
            *(m.pointers() for m in (self._qkv, self._output, self._gate_up, self._down)),
        )


def misfit(config: DecoderConfig) -> str | None:
    """Why this decoder cannot run natively; None if it can."""
    sizes = {
        "hidden_size": config.width,
        "intermediate_size": config.hidden,
        "head_dim": config.head_dim,
    }
    for name, size in sizes.items():
        if size % BLOCK:
            return f"{name} {size} is not a multiple of {BLOCK}"
    if config.head_dim > MAX_HEAD_DIM:
        return f"head_dim {config.head_dim} is over {MAX_HEAD_DIM}"
    return None


def fits_page(page_size: int) -> bool:
    return page_size % GROUP == 0


def _alternating(both: Tensor) -> Tensor:
    """A block of gates, the block of their ups, and so on: one thread then has both."""
    gates, ups = both.chunk(2)
    shape = (-1, BLOCK, *both.shape[1:])
    return torch.stack((gates.reshape(shape), ups.reshape(shape)), 1).reshape(both.shape)


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
