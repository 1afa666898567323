"""The model: built from its class, with first values that no number of ranks changes.

Owns two ways to the same promise. A class with `init_tensor` is built without memory (device meta),
sharded, and then filled one tensor at a time, each by a generator that its name seeds. Any other
class is constructed whole on every rank, from one seed. It never wraps or shards.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backends.model import import_class
from trainer.config import ModelConfig
from trainer.errors import BadPlugin
from trainer.seeds import derive
from trainer.shards import local, place

# The optional method `init_tensor(name, tensor, generator)` fills the whole tensor, parameter or
# buffer, that has this name in the model.
INIT = "init_tensor"


@dataclass(frozen=True, slots=True)
class Definition:
    """The class and its arguments; makes models that are not yet on any device."""

    class_: type[nn.Module]
    config: ModelConfig
    seed: int

    @property
    def fills(self) -> bool:
        """Whether the model can be built without memory."""
        return hasattr(self.class_, INIT)

    def build(self) -> nn.Module:
        """On device meta if the class fills its own tensors, else seeded and in host memory."""
        if self.fills:
            return self.on_meta()
        torch.manual_seed(derive(self.seed, "model"))
        return self.in_memory()

    def on_meta(self) -> nn.Module:
        with torch.device("meta"):
            return self.in_memory()

    def in_memory(self) -> nn.Module:
        """Raises BadPlugin when the class does not take what `model.config` gives."""
        arguments = dict(self.config.config)
        try:
            inspect.signature(self.class_).bind(**arguments)
        except TypeError as error:
            raise BadPlugin(
                f"model.config: {self.config.class_} was called with: {error}"
            ) from error
        model = self.class_(**arguments)
        if not any(p.requires_grad for p in model.parameters()):
            raise BadPlugin(f"model.class: {self.config.class_} has no parameter to train")
        return model


def define(config: ModelConfig, root: Path, seed: int) -> Definition:
    """Raises BadPlugin, saying what the class lacks."""
    try:
        found: type[Any] = import_class(config.class_, root=root)
    except ValueError as error:
        raise BadPlugin(f"model.class: {error}") from error
    if not issubclass(found, nn.Module):
        raise BadPlugin(f"model.class: {config.class_} is no torch.nn.Module")
    if not callable(getattr(found, "loss", None)):
        raise BadPlugin(f"model.class: {config.class_} has no method loss(batch)")
    return Definition(found, config, seed)


def materialise(model: nn.Module, seed: int, device: torch.device) -> None:
    """Gives a model on device meta its memory and its first values, its own shards only.

    One whole tensor is in memory at a time, so a rank needs its shards and the largest tensor.
    """
    shared = owners(model)
    model.to_empty(device=device)
    for (module, name), *others in shared:
        for other, alias in others:  # `to_empty` unties what was shared
            setattr(other, alias, getattr(module, name))
    fill = getattr(model, INIT)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            generator = torch.Generator(device).manual_seed(derive(seed, "model", name))
            whole = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            fill(name, whole, generator)
            local(tensor).copy_(whole[place(tensor).slices])


def owners(model: nn.Module) -> list[list[tuple[nn.Module, str]]]:
    """For each distinct tensor of the model, the attributes that hold it."""
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        own = (
            *module.named_parameters(recurse=False, remove_duplicate=False),
            *module.named_buffers(recurse=False, remove_duplicate=False),
        )
        for name, tensor in own:
            found.setdefault(id(tensor), []).append((module, name))
    return list(found.values())
