"""A model cut into the stages of a pipeline, without its knowing.

Owns the cut: a stage is the model with the modules of all other stages replaced by ones that hand
on what they get, so tensors keep their names and the model's own `forward` and `loss` run on every
stage. A class says where it may be cut in `pipeline`. Invariant: each module with parameters is in
exactly one stage, except a tied weight, which the first and the last stage hold.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from trainer.config import ParallelConfig
from trainer.errors import BadPlugin

# The optional class attribute (before, layers, after): names of modules that `forward` calls one
# after the other, each with what the one before returned first. `layers` is a module list.
ATTRIBUTE = "pipeline"


class Absent(nn.Module):
    """Stands where another stage's module is."""

    def forward(self, x: Tensor, *_: object) -> Tensor:
        return x


@dataclass(frozen=True, slots=True)
class Cuts:
    """Where a model may be cut."""

    before: tuple[str, ...]
    layers: str
    after: tuple[str, ...]

    @classmethod
    def of(cls, model: nn.Module, name: str) -> Cuts:
        """Raises BadPlugin for a class that does not say."""
        found = getattr(model, ATTRIBUTE, None)
        if found is None:
            raise BadPlugin(
                f"parallel.pp: {name} has no attribute {ATTRIBUTE!r} that says where it may be "
                "cut; set parallel.pp = 1"
            )
        before, layers, after = found
        return cls(tuple(before), layers, tuple(after))


def even(layers: int, stages: int) -> tuple[int, ...]:
    """Layers of each stage. The middle ones get more: the ends have embedding and head too."""
    counts = [layers // stages] * stages
    middle_first = sorted(range(stages), key=lambda index: abs(2 * index - stages + 1))
    for index in middle_first[: layers % stages]:
        counts[index] += 1
    return tuple(counts)


def check_counts(counts: Sequence[int], layers: int, stages: int) -> tuple[int, ...]:
    """Raises BadPlugin when `counts` are no split of the layers."""
    if len(counts) != stages or sum(counts) != layers or min(counts) < 0:
        raise BadPlugin(
            f"parallel.layers: expected {stages} numbers with the sum {layers}, got {list(counts)}"
        )
    return tuple(counts)


def stage_of(
    model: nn.Module,
    cuts: Cuts,
    counts: Sequence[int],
    mine: Sequence[int],
    also: Sequence[str] = (),
) -> nn.Module:
    """The model with only the modules of the stages `mine`, and `also` those at these paths; it
    shares them with `model`."""
    first_layer = [sum(counts[:index]) for index in range(len(counts) + 1)]
    kept = {layer for stage in mine for layer in range(*first_layer[stage : stage + 2])}
    away = [f"{cuts.layers}.{i}" for i in range(sum(counts)) if i not in kept]
    if 0 not in mine:
        away += cuts.before
    if len(counts) - 1 not in mine:
        away += cuts.after
    return with_modules(model, {path: Absent() for path in away if path not in also})


def stage_models(model: nn.Module, config: ParallelConfig, name: str) -> Iterator[nn.Module]:
    """What each rank of a pipeline has, in order."""
    chunks = config.chunks if config.schedule == "interleaved" else 1
    count = config.pp * chunks
    cuts = Cuts.of(model, name)
    layers = layer_count(model, cuts)
    counts = check_counts(config.layers or even(layers, count), layers, count)
    for rank in range(config.pp):
        yield stage_of(model, cuts, counts, range(rank, count, config.pp))


def with_modules(model: nn.Module, replaced: Mapping[str, nn.Module]) -> nn.Module:
    """A model of its own that shares all modules with `model` but those at the paths."""
    bare = _bare(model)
    below: dict[str, dict[str, nn.Module]] = {}
    for path, module in replaced.items():
        name, _, rest = path.partition(".")
        if name not in bare._modules:
            raise BadPlugin(f"model.class: its {ATTRIBUTE!r} names {path!r}, which it has not")
        if rest:
            below.setdefault(name, {})[rest] = module
        else:
            bare._modules[name] = module
    for name, inner in below.items():
        bare._modules[name] = with_modules(getattr(model, name), inner)
    return bare


def _bare(module: nn.Module) -> nn.Module:
    """The same module but for its table of children."""
    bare = copy.copy(module)
    bare.__dict__["_modules"] = dict(module._modules)
    return bare


def layer_count(model: nn.Module, cuts: Cuts) -> int:
    layers = model.get_submodule(cuts.layers)
    if not isinstance(layers, nn.ModuleList):
        raise BadPlugin(f"model.class: {cuts.layers!r} of its {ATTRIBUTE!r} is no ModuleList")
    return len(layers)
