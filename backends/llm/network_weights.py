"""Which part of which tensor of a checkpoint a rank computes with.

Owns the split of a decoder over ranks (columns of the first map of a pair, rows of the second) and
the packing of maps that share an input. The checkpoint holds whole tensors under their Hugging Face
names, whatever layout wrote them; a rank takes one tensor at a time and keeps its slice. Invariant:
nothing is loaded unless every tensor is there with its shape.

Shape suffixes: O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from backends.checkpoint import Manifest, read_tensors
from backends.checkpoint.reading import Pace
from backends.models.config import DecoderConfig, UnsupportedModel

# Gives a whole tensor by its name.
Source = Callable[[str], Tensor]

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


def shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """name → shape of every tensor that a checkpoint of this decoder stores; ties once."""
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    maps = {
        "self_attn.q_proj": (queries, config.width, config.qkv_bias),
        "self_attn.k_proj": (keys, config.width, config.qkv_bias),
        "self_attn.v_proj": (keys, config.width, config.qkv_bias),
        "self_attn.o_proj": (config.width, queries, config.output_bias),
        "mlp.gate_proj": (config.hidden, config.width, config.mlp_bias),
        "mlp.up_proj": (config.hidden, config.width, config.mlp_bias),
        "mlp.down_proj": (config.width, config.hidden, config.mlp_bias),
    }
    norms = {"input_layernorm": config.width, "post_attention_layernorm": config.width}
    if config.qk_norm:
        norms |= {"self_attn.q_norm": config.head_dim, "self_attn.k_norm": config.head_dim}
    found: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocabulary, config.width)}
    for i in range(config.layers):
        for name, size in norms.items():
            found[f"model.layers.{i}.{name}.weight"] = (size,)
        for name, (outputs, inputs, bias) in maps.items():
            found[f"model.layers.{i}.{name}.weight"] = (outputs, inputs)
            if bias:
                found[f"model.layers.{i}.{name}.bias"] = (outputs,)
    found[NORM] = (config.width,)
    if not config.tied:
        found[HEAD] = (config.vocabulary, config.width)
    return found


def check(config: DecoderConfig, found: Mapping[str, Sequence[int]]) -> None:
    """Raises UnsupportedModel unless all tensors are there, as they should be, and no others."""
    wanted = shapes(config)
    for name, shape in wanted.items():
        if name not in found:
            raise UnsupportedModel(f"tensor {name} is missing")
        if tuple(found[name]) != shape:
            raise UnsupportedModel(f"tensor {name} is {tuple(found[name])}, should be {shape}")
    extra = sorted(found.keys() - wanted.keys() - {HEAD})
    if extra:
        raise UnsupportedModel(f"tensor {extra[0]} is not part of a {config.architecture} decoder")


@dataclass(frozen=True, slots=True)
class Share:
    """What rank `rank` of `world` computes. Key heads are repeated where ranks outnumber them."""

    config: DecoderConfig
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        c, world = self.config, self.world
        if not 0 <= self.rank < world:
            raise UnsupportedModel(f"rank {self.rank} of {world} does not exist")
        if c.heads % world or c.hidden % world:
            raise UnsupportedModel(
                f"{c.heads} heads and a hidden size of {c.hidden} do not split over {world} ranks"
            )
        if c.kv_heads % world and world % c.kv_heads:
            raise UnsupportedModel(f"{c.kv_heads} key heads do not split over {world} ranks")

    @property
    def heads(self) -> int:
        return self.config.heads // self.world

    @property
    def kv_heads(self) -> int:
        return max(1, self.config.kv_heads // self.world)

    @property
    def hidden(self) -> int:
        return self.config.hidden // self.world

    @property
    def splits_head(self) -> bool:
        return self.world > 1 and self.config.vocabulary % self.world == 0

    @property
    def vocabulary(self) -> int:
        """Rows of the head."""
        return self.config.vocabulary // (self.world if self.splits_head else 1)

    def queries(self) -> slice:
        return _part(self.heads * self.config.head_dim, self.rank)

    def keys(self) -> slice:
        first = self.rank * self.config.kv_heads // self.world
        size = self.kv_heads * self.config.head_dim
        start = first * self.config.head_dim
        return slice(start, start + size)

    def hiddens(self) -> slice:
        return _part(self.hidden, self.rank)

    def words(self) -> slice:
        return _part(self.vocabulary, self.rank if self.splits_head else 0)


def checkpoint_source(folder: Path, manifest: Manifest, pace: Pace | None) -> Source:
    """Reads each tensor when it is asked for, and checks its hash; all of them at one pace."""

    def source(name: str) -> Tensor:
        return read_tensors(folder, manifest, names=[name], pace=pace)[name]

    return source


def stacked(
    source: Source, prefix: str, parts: Sequence[tuple[str, slice]], bias: bool
) -> tuple[Tensor, Tensor | None]:
    """Maps with one input as a single one: rows of each, one below the other."""
    weight_OI = torch.cat([source(f"{prefix}{name}.weight")[rows] for name, rows in parts])
    if not bias:
        return weight_OI, None
    return weight_OI, torch.cat([source(f"{prefix}{name}.bias")[rows] for name, rows in parts])


def columns(
    source: Source, name: str, part: slice, bias: bool, rank: int
) -> tuple[Tensor, Tensor | None]:
    """The second map of a pair. The sum over ranks needs its bias once: rank 0 adds it."""
    weight_OI = source(f"{name}.weight")[:, part]
    if not bias:
        return weight_OI, None
    bias_O = source(f"{name}.bias")
    return weight_OI, bias_O if rank == 0 else torch.zeros_like(bias_O)


def _part(size: int, rank: int) -> slice:
    return slice(rank * size, (rank + 1) * size)
