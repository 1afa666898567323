"""The model: built from its class, with first values that no number of ranks changes.

Owns two ways to the same promise. A class with `init_tensor` is built without memory (device meta),
sharded, and then filled one tensor at a time, each by a generator that its name seeds. Any other
class is constructed whole on every rank, from one seed. It never wraps or shards.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backends.model import import_class
from trainer.config import LoraConfig, ModelConfig
from trainer.errors import BadPlugin
from trainer.lora import add_low_rank, fill_low_rank
from trainer.seeds import derive
from trainer.shards import local, place
from trainer.source import Source, open_source

# The optional method `init_tensor(name, tensor, generator)` fills the whole tensor, parameter or
# buffer, that has this name in the model.
INIT = "init_tensor"


@dataclass(frozen=True, slots=True)
class Definition:
    """The class and its arguments; makes models that are not yet on any device.

    What is trained may be the class's model with low-rank updates, what is served never is.
    """

    class_: type[nn.Module]
    name: str
    arguments: Mapping[str, Any]
    seed: int
    lora: LoraConfig = field(default_factory=LoraConfig)
    source: Source | None = None

    @property
    def fills(self) -> bool:
        """Whether the model can be built without memory."""
        return hasattr(self.class_, INIT)

    @property
    def origin(self) -> str:
        """What the values hang on, beside the class and its arguments."""
        lora, parts = self.lora, list[str]()
        if self.source is not None:
            parts.append(self.source.fingerprint)
        if lora.rank is not None:
            parts.append(f"lora {lora.rank} x {lora.scale:g} on {' '.join(lora.targets)}")
        return ", ".join(parts)

    def build(self) -> nn.Module:
        """On device meta if the class fills its own tensors, else seeded and in host memory."""
        if self.fills:
            return self.on_meta()
        torch.manual_seed(derive(self.seed, "model"))
        return self._trained()

    def on_meta(self) -> nn.Module:
        with torch.device("meta"):
            return self._trained()

    def served_on_meta(self) -> nn.Module:
        with torch.device("meta"):
            return self.in_memory()

    def in_memory(self) -> nn.Module:
        """As it is served. Raises BadPlugin when the class does not take its arguments."""
        arguments = dict(self.arguments)
        try:
            inspect.signature(self.class_).bind(**arguments)
            model = self.class_(**arguments)
        except (TypeError, ValueError) as error:
            raise BadPlugin(f"model.config: {self.name} was called with: {error}") from error
        if not any(p.requires_grad for p in model.parameters()):
            raise BadPlugin(f"model.class: {self.name} has no parameter to train")
        return model

    def sized(self, counts: Mapping[str, int]) -> Definition:
        """With the arguments that the class takes and nobody gave, as the data counts them. Raises
        BadPlugin for one that was given and is below what the data has."""
        taken = inspect.signature(self.class_).parameters
        known = {name: count for name, count in counts.items() if name in taken}
        for name, count in known.items():
            given = self.arguments.get(name, count)
            if isinstance(given, int) and given < count:
                raise BadPlugin(
                    f"model.config.{name}: is {given}, and the data has {count}; set it to that, "
                    "or more, or leave it out"
                )
        return replace(self, arguments={**known, **self.arguments})

    def fill(self, model: nn.Module, device: torch.device) -> None:
        """Gives a model that `build` made, or a part of it, its first values."""
        if self.fills:
            materialise(model, self.seed, device)
        if self.source is not None:
            self.source.fill(model, self._ties)

    @property
    def _ties(self) -> dict[str, str]:
        first: dict[int, str] = {}
        named = self.served_on_meta().named_parameters(remove_duplicate=False)
        found = {name: first.setdefault(id(parameter), name) for name, parameter in named}
        return {name: known for name, known in found.items() if name != known}

    def _trained(self) -> nn.Module:
        model, lora = self.in_memory(), self.lora
        if lora.rank is not None:
            add_low_rank(model, lora.targets, lora.rank, lora.scale, lora.dropout)
        return model


def define(
    config: ModelConfig, root: Path, seed: int, lora: LoraConfig | None = None
) -> Definition:
    """Raises BadPlugin, saying what the class lacks or why `init` cannot be read."""
    source = open_source(config.init) if config.init is not None else None
    name, arguments = config.class_, config.config
    if name is None:
        assert source is not None  # or the configuration would have been refused
        name, arguments = source.class_, source.config
    try:
        found: type[Any] = import_class(name, root=root)
    except ValueError as error:
        raise BadPlugin(f"model.class: {error}") from error
    if not issubclass(found, nn.Module):
        raise BadPlugin(f"model.class: {name} is no torch.nn.Module")
    if not callable(getattr(found, "loss", None)):
        raise BadPlugin(f"model.class: {name} has no method loss(batch)")
    return Definition(found, name, arguments, seed, lora or LoraConfig(), source)


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
            if not fill_low_rank(name, whole, generator):
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
