"""What `train` and `train-gpu` compare: the same model, data and steps in three programs.

Owns the task, so that they cannot differ, and the form of what a program says: one JSON line with
the seconds of each step after the first few, and the losses.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Task:
    """`sequences` of `length` tokens make a step; the first `warm` are not measured. `head` is the
    width of an attention head."""

    layers: int
    width: int
    vocabulary: int
    sequences: int
    length: int
    steps: int
    warm: int
    seed: int
    precision: str = "fp32"
    lr: float = 1e-3
    weight_decay: float = 0.1
    clip: float = 1.0
    head: int = 64
    device: str = "cpu"
    compile: bool = False

    @property
    def model(self) -> dict[str, Any]:
        """A Hugging Face config.json."""
        return {
            "model_type": "llama",
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "intermediate_size": 3 * self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.width // self.head,
            "num_key_value_heads": self.width // self.head,
            "max_position_embeddings": self.length,
            "tie_word_embeddings": True,
        }

    @property
    def tokens(self) -> int:
        """Of the measured steps."""
        return (self.steps - self.warm) * self.sequences * self.length

    def dump(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> Task:
        return cls(**json.loads(text))


def report(seconds: float, losses: Sequence[float], **more: object) -> None:
    """`seconds` of all measured steps."""
    print(json.dumps({"seconds": seconds, "losses": list(losses), **more}), flush=True)
