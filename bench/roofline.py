"""How fast a decoder could be generated with, from what its machine reads and multiplies a second.

Owns the counting of bytes and operations (w weights, k of keys and values a token, P parameters):
a step reads `w + Σ context · k` and does `2 · P · B`, and cannot take less than the longer of the
two; a prompt costs `2 · P_no_embed · T + 2 · layers · heads · head_dim · T²`. It measures nothing.
Invariant: the roof of a task counts a shared prefix once, whoever computes it how often.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Machine:
    """Bytes read and bf16 operations, a second."""

    bytes_s: float
    flops: float


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder's counts. `parameters` are those that each token is multiplied by: the layers and
    the head, which may be the embedding again; `layer_parameters` leave the head out."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    parameters: int
    layer_parameters: int

    @classmethod
    def of(cls, folder: Path) -> Shape:
        """From a Hugging Face config.json of the Llama family."""
        c: Mapping[str, Any] = json.loads((folder / "config.json").read_text())
        layers, width, heads = c["num_hidden_layers"], c["hidden_size"], c["num_attention_heads"]
        kv_heads = c.get("num_key_value_heads", heads)
        head_dim = c.get("head_dim") or width // heads
        attention = 2 * width * heads * head_dim + 2 * width * kv_heads * head_dim
        layer = attention + 3 * width * c["intermediate_size"]
        inner = layers * layer
        return cls(layers, heads, kv_heads, head_dim, inner + c["vocab_size"] * width, inner)

    @property
    def kv_bytes(self) -> int:
        """Of a token, in bf16."""
        return 2 * self.layers * self.kv_heads * self.head_dim * 2


@dataclass(frozen=True, slots=True)
class Roofline:
    shape: Shape
    machine: Machine
    # Bytes of a weight: 2 in bf16, 1 in int8.
    weight_bytes: float = 2.0

    def step_bytes(self, batch: int, context: float) -> float:
        return self.shape.parameters * self.weight_bytes + batch * context * self.shape.kv_bytes

    def step_flops(self, batch: int) -> float:
        return 2.0 * self.shape.parameters * batch

    def step_s(self, batch: int, context: float) -> float:
        """The least seconds of a step that gives each of `batch` sequences a token."""
        read = self.step_bytes(batch, context) / self.machine.bytes_s
        return max(read, self.step_flops(batch) / self.machine.flops)

    def prefill_s(self, tokens: int, context: int = 0) -> float:
        """Of `tokens` after `context` that is there already."""
        shape = self.shape
        pairs = (context + tokens) ** 2 - context**2
        attention = 2.0 * shape.layers * shape.heads * shape.head_dim * pairs
        return (2.0 * shape.layer_parameters * tokens + attention) / self.machine.flops

    def task_s(self, batch: int, *, shared: int, own: int, tokens: int) -> float:
        """Of prompts of `shared + own` tokens, answered with `tokens` each. The prompts' last
        tokens give the first of each answer, so there is a step less than tokens."""
        prompts = self.prefill_s(shared) + batch * self.prefill_s(own, shared)
        length = shared + own
        return prompts + sum(self.step_s(batch, length + i) for i in range(1, tokens))

    def utilisation(self, batch: int, context: float, step_s: float) -> tuple[float, float]:
        """Of the memory's bandwidth and of the arithmetic, in steps that take `step_s`."""
        read = self.step_bytes(batch, context) / (step_s * self.machine.bytes_s)
        return read, self.step_flops(batch) / (step_s * self.machine.flops)
