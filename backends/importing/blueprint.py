"""What a source's weights are made into: the class that computes with them, and what it needs.

Owns the choice by `architectures` of the config. Invariant: a Blueprint names every tensor that the
class has, with its shape; tensors of the source beyond these stay where they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from backends.importing.material import ImportFailed, Material
from backends.llm.network_weights import EMBEDDING, HEAD, shapes
from backends.models.efficientnet import EfficientNetLite
from backends.models.embedder import BertEmbedder

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Blueprint:
    """`config` are the arguments of the class. `tensors`: of each what is stored, its shape and
    dtype. `ties` maps names that are not stored to the tensors that they share."""

    class_: str
    config: Mapping[str, Any]
    tensors: Mapping[str, tuple[Shape, torch.dtype]]
    ties: Mapping[str, str]


def blueprint(material: Material, dtype: torch.dtype | None) -> Blueprint:
    """`dtype` is that of all floating-point tensors; None: what suits the model. Raises
    ImportFailed."""
    named = [str(name) for name in material.config.get("architectures") or ()]
    if "BertModel" in named:
        return _of_module(material, BertEmbedder, material.config, dtype)
    if "EfficientNetLite" in named:
        own = {key: value for key, value in material.config.items() if key != "architectures"}
        return _of_module(material, EfficientNetLite, own, dtype)
    decoder, dtype = material.decoder(), dtype or torch.bfloat16
    return Blueprint(
        "backends.models.decoder:Decoder",
        _told(material.config, dtype),
        {name: (shape, dtype) for name, shape in shapes(decoder).items()},
        {HEAD: EMBEDDING} if decoder.tied else {},
    )


def _of_module(
    material: Material, kind: type[nn.Module], config: Mapping[str, Any], dtype: torch.dtype | None
) -> Blueprint:
    try:
        with torch.device("meta"):
            wanted = kind(**config).state_dict()
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ImportFailed(f"{material.name}: config.json: {error!r}") from error
    tensors: dict[str, tuple[Shape, torch.dtype]] = {}
    for name, tensor in wanted.items():
        shape, found = tuple(tensor.shape), material.shapes.get(name)
        if found != shape:
            raise ImportFailed(f"{material.name}: tensor {name} should be {shape}, is {found}")
        floats = tensor.is_floating_point()
        tensors[name] = shape, (dtype or torch.float32) if floats else tensor.dtype
    told = _told(config, dtype or torch.float32) if "model_type" in config else dict(config)
    return Blueprint(f"{kind.__module__}:{kind.__name__}", told, tensors, {})


def _told(config: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """A `config.json` of `transformers` for weights of this dtype."""
    kept = {key: value for key, value in config.items() if value is not None}
    kept.pop("torch_dtype", None)
    return kept | {"dtype": str(dtype).removeprefix("torch.")}
