"""A decoder whose every token tells which weights made it, for streams across reloads.

Two parts of the network name their version. The values of the cache carry an angle that the last
layer's direction shows: a sequence whose cache is of two versions shows an angle between. And the
head prefers the tokens of its own version. A token is written as "cache.head". All other weights
are random and do their arithmetic. Both count modulo `VERSIONS`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from backends.llm.network_weights import HEAD, shapes
from backends.models.config import DecoderConfig

# Further apart than what rounding moves, and more than are ever live together.
VERSIONS = 16
BYTES = 256
CONFIG: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": BYTES + VERSIONS * VERSIONS,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "dtype": "float32",
}
# Channel 0 is the same for all tokens; channels 1 and 2 are the angle that attention finds.
ALWAYS, ANGLE = 0, slice(1, 3)
_BRIGHT, _SHARP, _SURE = 4.0, 4.0, 8.0


def tensors(seed: int) -> dict[str, Tensor]:
    """Without a version yet; see `stamp`."""
    drawn = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}
    for name, shape in shapes(DecoderConfig.parse(CONFIG)).items():
        if len(shape) == 1:
            found[name] = torch.ones(shape)
            continue
        wide = 1.0 if "embed" in name else 0.02
        found[name] = torch.randn(shape, generator=drawn) * wide
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            found[name][: ANGLE.stop] = 0.0
        if name.endswith("o_proj.weight"):
            found[name][ANGLE, :2] = torch.eye(2)  # of the first head's first two values
    embedding = found["model.embed_tokens.weight"]
    embedding[:, : ANGLE.stop] = 0.0
    embedding[:, ALWAYS] = _BRIGHT
    return found


def stamp(weights: Mapping[str, Tensor], step: int) -> None:
    """Makes them those of version `step`, in place."""
    for name, values in weights.items():
        if name.endswith("v_proj.weight"):
            values[:2] = 0.0
            values[:2, ALWAYS] = _direction(step)
    head = weights[HEAD]
    head.zero_()
    head[:BYTES, ALWAYS] = -2 * _SURE
    for cache in range(VERSIONS):
        for own in range(VERSIONS):
            row = head[_token(cache, own)]
            row[ANGLE] = _SHARP * _direction(cache)
            row[ALWAYS] = _SURE if own == step % VERSIONS else -_SURE


def said_by(step: int) -> str:
    """What version `step` says in each token."""
    return f"{step % VERSIONS}.{step % VERSIONS}"


def probe_of(step: int, tokens: int = 4) -> tuple[list[int], list[int]]:
    """A prompt and what version `step` makes of it."""
    return list(b"Say who you are."), [_token(step % VERSIONS, step % VERSIONS)] * tokens


def tokenizer() -> bytes:
    """Bytes, and a word for each token that is said."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: at for at, letter in enumerate(letters)}
    for cache in range(VERSIONS):
        for own in range(VERSIONS):
            vocabulary[f"Ġ{cache}.{own}"] = _token(cache, own)
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return str(made.to_str()).encode()


def files() -> dict[str, bytes]:
    return {"config.json": json.dumps(CONFIG).encode(), "tokenizer.json": tokenizer()}


def _token(cache: int, own: int) -> int:
    return BYTES + cache * VERSIONS + own


def _direction(step: int) -> Tensor:
    turn = 2 * math.pi * (step % VERSIONS) / VERSIONS
    return torch.tensor([math.cos(turn), math.sin(turn)])
