"""Rotary position embedding: how fast each pair turns, and the turning.

Owns the frequencies of every scaling that `DecoderConfig` accepts; the same function serves
training and serving. Invariant: frequencies are computed in float32 on the CPU, in the order of
operations of the reference implementation, so that they are bit for bit the same everywhere.

Shape suffixes: N positions, F = head_dim / 2 frequencies, D head_dim.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from backends.models.config import Rope


def frequencies(rope: Rope, head_dim: int, length: int = 0) -> Tensor:
    """[F] float32, radians per position. `length` counts for dynamic scaling only: the longest
    sequence, if that is over the trained context."""
    with torch.device("cpu"):
        exponent_F = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
        if rope.scaling == "dynamic":
            stretch = rope.factor * max(length, rope.original_context) / rope.original_context
            base = rope.theta * (stretch - (rope.factor - 1)) ** (head_dim / (head_dim - 2))
            return torch.reciprocal(base**exponent_F)
        if rope.scaling == "yarn":
            return _yarn(rope, head_dim, rope.theta**exponent_F)
        plain_F = 1.0 / (rope.theta**exponent_F)
        if rope.scaling == "linear":
            return plain_F / rope.factor
        if rope.scaling == "llama3":
            return _llama3(rope, plain_F)
        return plain_F


def _llama3(rope: Rope, plain_F: Tensor) -> Tensor:
    """Slow turns are slowed further, fast ones kept, those between blended."""
    wave_F = 2 * math.pi / plain_F
    slowest = rope.original_context / rope.low_freq_factor
    fastest = rope.original_context / rope.high_freq_factor
    span = rope.high_freq_factor - rope.low_freq_factor
    blend_F = (rope.original_context / wave_F - rope.low_freq_factor) / span
    mixed_F = (1 - blend_F) * plain_F / rope.factor + blend_F * plain_F
    kept_F = torch.where(wave_F < fastest, plain_F, mixed_F)
    return torch.where(wave_F > slowest, plain_F / rope.factor, kept_F)


def _yarn(rope: Rope, head_dim: int, period_F: Tensor) -> Tensor:
    def pair_with(turns: float) -> float:
        """Which pair makes so many turns in the original context."""
        waves = rope.original_context / (turns * 2 * math.pi)
        return head_dim * math.log(waves) / (2 * math.log(rope.theta))

    low, high = pair_with(rope.beta_fast), pair_with(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low or 0.001
    ramp_F = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    kept_F = 1 - ramp_F
    return 1.0 / (rope.factor * period_F) * (1 - kept_F) + 1.0 / period_F * kept_F


def turns(positions_N: Tensor, frequencies_F: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
    """cos and sin, each [N, D] float32: pair i is dimensions i and i + F."""
    angles_NF = positions_N[..., None].float() * frequencies_F
    angles_ND = torch.cat((angles_NF, angles_NF), -1)
    return angles_ND.cos() * rope.attention_factor, angles_ND.sin() * rope.attention_factor


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the last dimension of x; cos and sin broadcast over the others."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin
