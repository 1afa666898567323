"""Sentence embeddings by a BERT encoder: texts of different lengths padded together, then pooled.

Owns the module; parameters have the names that `transformers` gives them, so that a checkpoint is
valid there. The text side is `backends.tensor.texts`: here come tokens. Invariant: an embedding
does not depend on what it was padded with.

Shape suffixes: N texts, T tokens of the longest, D width, H heads, K width of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from backends.wire import Signature, TensorSpec


class BertEmbedder(nn.Module):
    """`config` is a BERT's `config.json`; a text may have `max_seq_length` tokens (None: as many as
    there are positions). Embeddings are means over tokens, of length 1."""

    # The input that a text becomes, by the checkpoint's tokenizer.
    reads_text = "input_ids"

    def __init__(self, max_seq_length: int | None = None, max_batch_size: int = 64, **config: Any):
        super().__init__()
        if config.get("position_embedding_type", "absolute") != "absolute":
            raise ValueError("position_embedding_type must be absolute")
        if config.get("hidden_act", "gelu") != "gelu":
            raise ValueError(f"hidden_act must be gelu, got {config['hidden_act']}")
        width = config["hidden_size"]
        self.max_length = min(max_seq_length or 2**31, config["max_position_embeddings"])
        self.embeddings = _Embeddings(config)
        self.encoder = _Encoder(config)
        self.signature = Signature(
            inputs=(TensorSpec("input_ids", "INT64", (-1,)),),
            outputs=(TensorSpec("embedding", "FP32", (width,)),),
            max_batch_size=max_batch_size,
            ragged="pad",
        )

    def forward(self, tokens_NT: Tensor, lengths_N: Tensor) -> Tensor:
        """[N, D], each of length 1."""
        real_NT = torch.arange(tokens_NT.shape[1], device=tokens_NT.device) < lengths_N[:, None]
        x_NTD = self.encoder(self.embeddings(tokens_NT), real_NT)
        summed_ND = (x_NTD * real_NT[..., None]).sum(1)
        mean_ND = summed_ND / lengths_N.clamp(min=1)[:, None]
        return functional.normalize(mean_ND.float(), dim=-1)

    def infer(self, input_ids: Tensor, input_ids_lengths: Tensor) -> Mapping[str, Tensor]:
        vocabulary = self.embeddings.word_embeddings.num_embeddings
        if bool((input_ids < 0).any()) or bool((input_ids >= vocabulary).any()):
            raise ValueError(f"input_ids must be from 0 to {vocabulary - 1}")
        if input_ids.shape[1] > self.max_length:
            raise ValueError(f"a text has {input_ids.shape[1]} tokens, at most {self.max_length}")
        return {"embedding": self(input_ids, input_ids_lengths)}


class _Embeddings(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width = config["hidden_size"]
        self.word_embeddings = nn.Embedding(config["vocab_size"], width)
        self.position_embeddings = nn.Embedding(config["max_position_embeddings"], width)
        self.token_type_embeddings = nn.Embedding(config["type_vocab_size"], width)
        self.LayerNorm = nn.LayerNorm(width, eps=config["layer_norm_eps"])

    def forward(self, tokens_NT: Tensor) -> Tensor:
        # One text each, so all tokens are of the first type.
        places_TD = self.position_embeddings.weight[: tokens_NT.shape[1]]
        x_NTD = self.word_embeddings(tokens_NT) + places_TD + self.token_type_embeddings.weight[0]
        normed: Tensor = self.LayerNorm(x_NTD)
        return normed


class _Encoder(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Layer(config) for _ in range(config["num_hidden_layers"]))

    def forward(self, x_NTD: Tensor, real_NT: Tensor) -> Tensor:
        mask_N11T = real_NT[:, None, None]
        for layer in self.layer:
            x_NTD = layer(x_NTD, mask_N11T)
        return x_NTD


class _Layer(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, wide = config["hidden_size"], config["intermediate_size"]
        self.attention = _Attention(config)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, wide)})
        self.output = _Output(wide, width, config["layer_norm_eps"])

    def forward(self, x_NTD: Tensor, mask_N11T: Tensor) -> Tensor:
        x_NTD = self.attention(x_NTD, mask_N11T)
        wide = functional.gelu(self.intermediate["dense"](x_NTD))
        out: Tensor = self.output(wide, x_NTD)
        return out


class _Attention(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, self._heads = config["hidden_size"], config["num_attention_heads"]
        names = ("query", "key", "value")
        self.self = nn.ModuleDict({name: nn.Linear(width, width) for name in names})
        self.output = _Output(width, width, config["layer_norm_eps"])

    def forward(self, x_NTD: Tensor, mask_N11T: Tensor) -> Tensor:
        split = (*x_NTD.shape[:2], self._heads, -1)
        q, k, v = (self.self[name](x_NTD).view(split).transpose(1, 2) for name in self.self)
        mixed_NHTK = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask_N11T)
        out: Tensor = self.output(mixed_NHTK.transpose(1, 2).flatten(2), x_NTD)
        return out


class _Output(nn.Module):
    """Back to the width, added to what came in, normed."""

    def __init__(self, fan_in: int, width: int, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(fan_in, width)
        self.LayerNorm = nn.LayerNorm(width, eps=eps)

    def forward(self, inner: Tensor, x_NTD: Tensor) -> Tensor:
        normed: Tensor = self.LayerNorm(self.dense(inner) + x_NTD)
        return normed
