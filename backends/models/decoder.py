"""A decoder-only language model (Llama, Qwen2, Qwen3) as the trainer sees it.

Owns the definition: parameter names and arithmetic are those of the Hugging Face models, step by
step, so that a published checkpoint gives `transformers` the same logits. Causal attention over
whole sequences; it keeps no cache: serving has its own network over the same weights
(`backends.llm.network`). Invariant: nothing but parameters is in it, so it may be built on meta.

Shape suffixes: B batch, T tokens, S tokens that are seen, C width, H query heads, K key/value
heads, D head_dim, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backends.models.config import DecoderConfig
from backends.models.rope import frequencies, turn, turns

# A label that counts for nothing.
IGNORE = -100


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * scaled.to(x.dtype)


class Attend(nn.Module):
    """Causal attention. Where there are fewer queries than keys, they are the last ones."""

    def __init__(self, dropout: float, grouped: bool) -> None:
        super().__init__()
        self._dropout, self._grouped = dropout, grouped

    def forward(self, q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor) -> Tensor:
        queries, keys = q_BHTD.shape[2], k_BKSD.shape[2]
        mask = None if queries == keys else _last_of(queries, keys, q_BHTD.device)
        return F.scaled_dot_product_attention(
            q_BHTD,
            k_BKSD,
            v_BKSD,
            attn_mask=mask,
            dropout_p=self._dropout if self.training else 0.0,
            is_causal=mask is None,
            enable_gqa=self._grouped,
        )


def _last_of(queries: int, keys: int, device: torch.device) -> Tensor:
    """Which keys each of the last `queries` sees; a GPU's kernels know without a mask."""
    if device.type == "cuda":
        from torch.nn.attention.bias import causal_lower_right

        return causal_lower_right(queries, keys)
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


class Positions(nn.Module):
    """Where each column of x [B, T, ...] is in its sequence, and how long that is."""

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return torch.arange(x.shape[1], device=x.device), x.shape[1]


class Attention(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.attend = Attend(config.attention_dropout, config.heads != config.kv_heads)
        queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.width, queries, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.width, keys, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.width, keys, bias=config.qkv_bias)
        self.o_proj = nn.Linear(queries, config.width, bias=config.output_bias)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.norm_eps)

    def forward(self, x_BTC: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        config = self.config
        heads = (*x_BTC.shape[:2], -1, config.head_dim)
        q_BTHD, k_BTKD = self.q_proj(x_BTC).view(heads), self.k_proj(x_BTC).view(heads)
        if config.qk_norm:
            q_BTHD, k_BTKD = self.q_norm(q_BTHD), self.k_norm(k_BTKD)
        q_BHTD = turn(q_BTHD.transpose(1, 2), cos_TD, sin_TD)
        k_BKTD = turn(k_BTKD.transpose(1, 2), cos_TD, sin_TD)
        v_BKTD = self.v_proj(x_BTC).view(heads).transpose(1, 2)
        y_BHTD = self.attend(q_BHTD, k_BKTD, v_BKTD)
        return self.o_proj(y_BHTD.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.hidden, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.width, config.hidden, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.hidden, config.width, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class Layer(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = Mlp(config)
        self.input_layernorm = RMSNorm(config.width, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_eps)

    def forward(self, x: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos_TD, sin_TD)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class Trunk(nn.Module):
    """Everything but the head; `model.` in the names."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.positions = Positions()
        self.embed_tokens = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x_BTC = self.embed_tokens(tokens_BT)
        rope = self.config.rope
        positions_T, length = self.positions(tokens_BT)
        per_position_F = frequencies(rope, self.config.head_dim, length).to(x_BTC.device)
        cos_TD, sin_TD = (t.to(x_BTC.dtype) for t in turns(positions_T, per_position_F, rope))
        for layer in self.layers:
            x_BTC = layer(x_BTC, cos_TD, sin_TD)
        return self.norm(x_BTC)  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """`Decoder(**config)`, `config` being a Hugging Face `config.json` of model_type llama, qwen2
    or qwen3. Raises UnsupportedModel, naming the key."""

    # For `trainer`: where a pipeline may cut it, how each module is cut over several devices, and
    # which modules know that a sequence is cut.
    pipeline = (("model.embed_tokens",), "model.layers", ("model.norm", "lm_head"))
    tensor_plan: ClassVar[Mapping[str, str]] = {
        "model.embed_tokens": "embed",
        "model.layers.*.self_attn.[qk]_norm": "heads",
        "model.layers.*norm": "sequence",
        "model.layers.*.self_attn.[qkv]_proj": "columns",
        "model.layers.*.self_attn.o_proj": "rows",
        "model.layers.*.self_attn": "gather",
        "model.layers.*.mlp.down_proj": "rows",
        "model.layers.*.mlp.*_proj": "columns",
        "model.layers.*.mlp": "gather",
        "model.norm": "sequence",
        "lm_head": "head",
    }
    context_plan: ClassVar[Mapping[str, str]] = {
        "model.positions": "positions",
        "model.layers.*.self_attn.attend": "attend",
    }

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = DecoderConfig.parse(config)
        self.model = Trunk(self.config)
        self.lm_head = nn.Linear(self.config.width, self.config.vocabulary, bias=False)
        if self.config.tied:
            self.lm_head.weight = self.model.embed_tokens.weight
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                self.init_tensor(name, parameter, None)

    def init_tensor(self, name: str, tensor: Tensor, generator: torch.Generator | None) -> None:
        """First values: normal, of the config's `initializer_range`. What adds to the residual
        stream starts smaller the more of it there is, as in GPT-2: the stream keeps its scale."""
        if name.endswith("norm.weight"):
            nn.init.ones_(tensor)
        elif name.endswith("bias"):
            nn.init.zeros_(tensor)
        else:
            adds = name.endswith(("o_proj.weight", "down_proj.weight"))
            std = self.config.init_std / (math.sqrt(2 * self.config.layers) if adds else 1.0)
            nn.init.normal_(tensor, std=std, generator=generator)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """[B, T, V] logits, each row of the tokens up to its own."""
        return self.lm_head(self.model(tokens_BT))  # type: ignore[no-any-return]

    def loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Mean cross-entropy of each next token. `tokens` [B, T]; `labels` [B, T] if given stand
        for the tokens as what is to be predicted, -100 where nothing is: position t is asked for
        labels[t + 1], as in `transformers`. With `targets` [B, T], position t is asked for
        targets[t], and the sum is divided by `asked`: a part of the mean of a longer sequence."""
        tokens_BT = batch["tokens"]
        if "targets" in batch:
            return self._cross_entropy(tokens_BT, batch["targets"], "sum") / batch["asked"][0], {}
        labels_BT = batch.get("labels", tokens_BT)
        # Moving labels, not logits, spares a copy of the largest tensor there is.
        targets_BT = F.pad(labels_BT[:, 1:], (0, 1), value=IGNORE)
        return self._cross_entropy(tokens_BT, targets_BT, "mean"), {}

    def _cross_entropy(self, tokens_BT: Tensor, targets_BT: Tensor, reduction: str) -> Tensor:
        logits, targets = self(tokens_BT).flatten(0, 1).float(), targets_BT.flatten()
        return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction=reduction)
