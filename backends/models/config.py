"""What a decoder is: a Hugging Face `config.json`, checked once and frozen.

Owns the reading of that file's many spellings (rope in old and new form, biases by architecture).
Knows no tensor. Invariant: a config that asks for arithmetic that `Decoder` does not do is refused,
with the key named; every other key is kept in the file and not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
SCALINGS = ("default", "linear", "dynamic", "llama3", "yarn")


class UnsupportedModel(ValueError):
    """The message names the key of the config and what would be possible."""


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embedding. `original_context` is the length that was trained before scaling."""

    theta: float = 10_000.0
    scaling: str = "default"
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    # What cos and sin are multiplied by (yarn); 1 otherwise.
    attention_factor: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    architecture: str
    vocabulary: int
    width: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    norm_eps: float = 1e-6
    rope: Rope = field(default_factory=Rope)
    tied: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    attention_dropout: float = 0.0
    init_std: float = 0.02

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> DecoderConfig:
        """Raises UnsupportedModel."""
        architecture = _architecture(config)
        _refuse_other_arithmetic(config)
        layers = _whole(config, "num_hidden_layers")
        width, heads = _whole(config, "hidden_size"), _whole(config, "num_attention_heads")
        kv_heads = _whole(config, "num_key_value_heads", heads)
        # Qwen3 has a head_dim of its own; elsewhere it follows from the width if not said.
        head_dim = _whole(config, "head_dim", 128 if architecture == "qwen3" else width // heads)
        if heads % kv_heads:
            raise UnsupportedModel(
                f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
            )
        if head_dim % 2:
            raise UnsupportedModel(f"head_dim {head_dim} must be even: rope turns pairs")
        bias = bool(config.get("attention_bias", False))
        context = _whole(config, "max_position_embeddings", 2048)
        return cls(
            architecture=architecture,
            vocabulary=_whole(config, "vocab_size"),
            width=width,
            hidden=_whole(config, "intermediate_size"),
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            context=context,
            norm_eps=_number(config, "rms_norm_eps", 1e-6),
            rope=_rope(config, context),
            tied=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=architecture == "qwen2" or bias,
            output_bias=architecture != "qwen2" and bias,
            mlp_bias=architecture == "llama" and bool(config.get("mlp_bias", False)),
            qk_norm=architecture == "qwen3",
            attention_dropout=_number(config, "attention_dropout", 0.0),
            init_std=_number(config, "initializer_range", 0.02),
        )


def _architecture(config: Mapping[str, Any]) -> str:
    found = config.get("model_type")
    if found is None:
        names = {name: kind for kind, name in ARCHITECTURES.items()}
        found = next((names[a] for a in config.get("architectures") or () if a in names), None)
    if found not in ARCHITECTURES:
        raise UnsupportedModel(f"model_type {found!r} is not one of {', '.join(ARCHITECTURES)}")
    return str(found)


def _refuse_other_arithmetic(config: Mapping[str, Any]) -> None:
    if config.get("hidden_act", "silu") != "silu":
        raise UnsupportedModel(f"hidden_act {config['hidden_act']!r} must be 'silu'")
    if config.get("quantization_config"):
        raise UnsupportedModel("quantization_config: the weights must not be quantised")
    if config.get("use_sliding_window"):
        raise UnsupportedModel("use_sliding_window: attention must be over the whole context")
    if any(kind != "full_attention" for kind in config.get("layer_types") or ()):
        raise UnsupportedModel("layer_types must all be 'full_attention'")


def _rope(config: Mapping[str, Any], context: int) -> Rope:
    """From `rope_parameters`, or from `rope_theta` and `rope_scaling` as older files have them."""
    table = dict(config.get("rope_scaling") or {}) | dict(config.get("rope_parameters") or {})
    if float(table.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1) != 1:
        raise UnsupportedModel("partial_rotary_factor must be 1")
    table.setdefault("rope_theta", config.get("rope_theta", 10_000.0))
    scaling = str(table.get("rope_type") or table.get("type") or "default")
    if scaling not in SCALINGS:
        raise UnsupportedModel(f"rope_type {scaling!r} is not one of {', '.join(SCALINGS)}")
    theta = _number(table, "rope_theta")
    if scaling == "default":
        return Rope(theta)
    if scaling == "llama3":
        return Rope(
            theta,
            scaling,
            _number(table, "factor"),
            _whole(table, "original_max_position_embeddings"),
            _number(table, "low_freq_factor"),
            _number(table, "high_freq_factor"),
        )
    if scaling == "yarn":
        return _yarn(table, theta, context)
    return Rope(theta, scaling, _number(table, "factor"), context)


def _yarn(table: Mapping[str, Any], theta: float, context: int) -> Rope:
    """arXiv 2309.00071."""
    original = _whole(table, "original_max_position_embeddings", context)
    factor = _number(table, "factor", context / original)
    attention = table.get("attention_factor")
    if attention is None:
        over, under = table.get("mscale"), table.get("mscale_all_dim")
        attention = _mscale(factor)
        if over and under:
            attention = _mscale(factor, float(over)) / _mscale(factor, float(under))
    return Rope(
        theta,
        "yarn",
        factor,
        original,
        beta_fast=float(table.get("beta_fast") or 32),
        beta_slow=float(table.get("beta_slow") or 1),
        truncate=bool(table.get("truncate", True)),
        attention_factor=float(attention),
    )


def _mscale(factor: float, weight: float = 1.0) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _whole(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UnsupportedModel(f"{key} must be a whole number above 0, got {value!r}")
    return value


def _number(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = config.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise UnsupportedModel(f"{key} must be a number, got {value!r}")
    return float(value)
