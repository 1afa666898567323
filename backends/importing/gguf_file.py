"""GGUF files: llama.cpp's metadata and quantised tensors, told in Hugging Face's terms.

Owns names, shapes, hyperparameters and the order of rows; `gguf_tokenizer` owns the vocabulary.
For the architecture "llama" that format stores query and key rows as pairs that turn together, side
by side; they go back to halves here. Qwen's files have halves already. Invariant: a key of the
metadata that would change the arithmetic is understood or refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from backends.importing.gguf_tokenizer import tokenizer_files
from backends.importing.material import ImportFailed, Material
from backends.models.config import ARCHITECTURES, Rope
from backends.models.rope import frequencies

_OUTER = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_INNER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
# What a turn's frequency is divided by (Llama 3.1 and later); no key tells how it came about.
ROPE_FACTORS = "rope_freqs.weight"
# As all Llama 3.1, 3.2 and 3.3 models have it.
LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def read_gguf(path: Path) -> Material:
    """Raises ImportFailed."""
    try:
        reader = gguf.GGUFReader(path)
        facts = {key: field.contents() for key, field in reader.fields.items()}
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ImportFailed(f"{path}: not a GGUF file that can be read: {error}") from error
    stored = {tensor.name: tensor for tensor in reader.tensors}
    if int(facts.get("split.count") or 1) > 1:
        raise ImportFailed(f"{path} is one of several parts; join them: llama-gguf-split --merge")
    names = {_name(path, name): name for name in stored if name != ROPE_FACTORS}
    config = _config(path, facts, stored)
    permuted = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}

    def read(name: str) -> Tensor:
        tensor = _values(path, stored[names[name]])
        heads = permuted.get(name.split(".")[-2])
        return tensor if heads is None or config["model_type"] != "llama" else halves(tensor, heads)

    return Material(
        path.stem,
        config,
        {name: _shape(stored[raw]) for name, raw in names.items()},
        read,
        tokenizer_files(path, facts),
    )


def halves(rows: Tensor, heads: int) -> Tensor:
    """Rows of each head from (0, 0', 1, 1', …) to (0, 1, …, 0', 1', …)."""
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return pairs.transpose(1, 2).reshape(rows.shape)


def _name(path: Path, raw: str) -> str:
    block = _BLOCK.fullmatch(raw)
    if block and block[2] in _INNER:
        return f"model.layers.{block[1]}.{_INNER[block[2]]}.{block[3]}"
    outer, _, kind = raw.partition(".")
    if outer in _OUTER and kind == "weight":
        return f"{_OUTER[outer]}.{kind}"
    raise ImportFailed(f"{path}: tensor {raw} is not part of a {', '.join(ARCHITECTURES)} decoder")


def _shape(tensor: Any) -> tuple[int, ...]:
    """The format counts the fastest dimension first."""
    return tuple(int(n) for n in reversed(tensor.shape))


def _values(path: Path, tensor: Any) -> Tensor:
    try:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        kind = tensor.tensor_type.name
        raise ImportFailed(f"{path}: {tensor.name}: type {kind} is not supported") from error
    # A copy: what the file maps may not be written to, and goes with it.
    return torch.from_numpy(np.array(values)).view(_shape(tensor))


def _config(path: Path, facts: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    kind = str(facts.get("general.architecture"))
    if kind not in ARCHITECTURES:
        raise ImportFailed(
            f"{path}: general.architecture {kind!r} is not one of {', '.join(ARCHITECTURES)}"
        )

    def fact(key: str, default: Any = None) -> Any:
        value = facts.get(f"{kind}.{key}", default)
        if value is None:
            raise ImportFailed(f"{path}: metadata {kind}.{key} is missing")
        return value

    width, heads = int(fact("embedding_length")), int(fact("attention.head_count"))
    head_dim = int(fact("attention.key_length", width // heads))
    for key in ("attention.value_length", "rope.dimension_count"):
        if int(fact(key, head_dim)) != head_dim:
            raise ImportFailed(f"{path}: {kind}.{key} {fact(key)} must be {head_dim}")
    if int(fact("expert_count", 0)) or int(fact("attention.sliding_window", 0)):
        raise ImportFailed(f"{path}: experts and sliding windows are not supported")
    context = int(fact("context_length"))
    bos, eos = facts.get("tokenizer.ggml.bos_token_id"), facts.get("tokenizer.ggml.eos_token_id")
    config = {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": _shape(stored["token_embd.weight"])[0]
        if "token_embd.weight" in stored
        else 0,
        "hidden_size": width,
        "intermediate_size": int(fact("feed_forward_length")),
        "num_hidden_layers": int(fact("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(fact("attention.head_count_kv", heads)),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": context,
        "rms_norm_eps": _decimal(fact("attention.layer_norm_rms_epsilon")),
        "tie_word_embeddings": "output.weight" not in stored,
        "attention_bias": kind != "qwen2" and "blk.0.attn_q.bias" in stored,
        "rope_parameters": _rope(path, kind, facts, stored, head_dim),
        "bos_token_id": bos,
        "eos_token_id": eos,
    }
    if kind == "llama":
        config["mlp_bias"] = "blk.0.ffn_gate.bias" in stored
    return config


def _rope(
    path: Path, kind: str, facts: Mapping[str, Any], stored: Mapping[str, Any], head_dim: int
) -> dict[str, Any]:
    theta = _decimal(facts.get(f"{kind}.rope.freq_base", 10_000.0))
    scaling = str(facts.get(f"{kind}.rope.scaling.type") or "none")
    if ROPE_FACTORS in stored:
        return _llama3(path, theta, _values(path, stored[ROPE_FACTORS]), head_dim)
    if scaling == "none":
        return {"rope_type": "default", "rope_theta": theta}
    if scaling not in ("linear", "yarn"):
        raise ImportFailed(f"{path}: {kind}.rope.scaling.type {scaling!r} is not supported")
    rope = {
        "rope_type": scaling,
        "rope_theta": theta,
        "factor": _decimal(facts.get(f"{kind}.rope.scaling.factor", 1.0)),
    }
    original = facts.get(f"{kind}.rope.scaling.original_context_length")
    if original is not None and scaling == "yarn":
        rope["original_max_position_embeddings"] = int(original)
    return rope


def _llama3(path: Path, theta: float, factors_F: Tensor, head_dim: int) -> dict[str, Any]:
    """The parameters that give these factors, if they are those of the known models."""
    factor = _decimal(float(factors_F.max()))
    context = LLAMA3["original_max_position_embeddings"]
    guess = Rope(theta, "llama3", factor, int(context), 1.0, 4.0)
    plain_F = frequencies(Rope(theta), head_dim)
    if not torch.allclose(plain_F / frequencies(guess, head_dim), factors_F.float(), rtol=1e-3):
        raise ImportFailed(f"{path}: {ROPE_FACTORS} is not the scaling of a Llama 3 model")
    return {"rope_type": "llama3", "rope_theta": theta, "factor": factor, **LLAMA3}


def _decimal(value: Any) -> float:
    """A float32 as the decimal that was meant: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))
