"""Tiny configs, one for each way in which the decoders differ."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # so that attention is not uniform
    "rms_norm_eps": 1e-5,
}


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1000.0, **more}}


SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True},
    "llama-biased": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama-no-gqa": {"model_type": "llama", "num_key_value_heads": 4, "head_dim": 16},
    "llama-linear": {"model_type": "llama"} | rope("linear", factor=3.0),
    "llama-dynamic": {"model_type": "llama", "max_position_embeddings": 12}
    | rope("dynamic", factor=2.0),
    "llama3": {"model_type": "llama"}
    | rope(
        "llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=32,
    ),
    "llama-old-spelling": {
        "model_type": "llama",
        "rope_theta": 500.0,
        "rope_scaling": {"type": "linear", "factor": 2.0},
    },
    "qwen2": {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 8},
    "qwen2-yarn": {"model_type": "qwen2"}
    | rope("yarn", factor=4.0, original_max_position_embeddings=16),
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "qwen3-tied": {"model_type": "qwen3", "head_dim": 8, "tie_word_embeddings": True},
}


def config(name: str, **more: Any) -> dict[str, Any]:
    return SMALL | SHAPES[name] | more
