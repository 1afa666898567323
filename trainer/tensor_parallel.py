"""Tensor and sequence parallelism: a model's layers cut over the mesh dimension "tp".

Owns the meaning of the words in a class's `tensor_plan` and their translation to torch's styles.
Between layers the activations are cut along the sequence; a layer gathers them, computes its
columns or heads, and scatters the sum. Invariant: the values are those of the uncut model up to the
order of additions.

Shape suffixes: B batch, T tokens, C width.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import (
    DTensor,
    Placement,
    Replicate,
    Shard,
    distribute_module,
    distribute_tensor,
)
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.distributed.tensor.parallel.style import ParallelStyle

from trainer.errors import BadPlugin
from trainer.lora import A, B, LowRank
from trainer.stages import Absent

# The optional class attribute {pattern of module names: word}; the words are below.
ATTRIBUTE = "tensor_plan"
SEQUENCE = Shard(1)


class Gather(ParallelStyle):
    """The module's first argument, cut along the sequence, comes whole. It stays a DTensor: so the
    partial gradients of several projections are summed and scattered once."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def whole(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            cut = DTensor.from_local(arguments[0], device_mesh, [SEQUENCE], run_check=False)
            return (cut.redistribute(placements=[Replicate()]), *arguments[1:])

        module.register_forward_pre_hook(whole)
        return module


class Enter(ParallelStyle):
    """At the head of a pipeline's later stage: what comes is whole, this rank goes on with its
    part of the sequence."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def cut(_: nn.Module, __: Any, x_BTC: Tensor) -> Tensor:
            whole = DTensor.from_local(x_BTC, device_mesh, [Replicate()], run_check=False)
            return whole.redistribute(placements=[SEQUENCE]).to_local()

        module.register_forward_hook(cut)
        return module


class Leave(ParallelStyle):
    """At the end of a stage that is not the last: the next one gets the whole sequence."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def join(_: nn.Module, __: Any, x_BTC: Tensor) -> Tensor:
            cut = DTensor.from_local(x_BTC, device_mesh, [SEQUENCE], run_check=False)
            return cut.redistribute(placements=[Replicate()]).to_local()

        module.register_forward_hook(join)
        return module


class LowRankColumns(ColwiseParallel):
    """As ColwiseParallel cuts a Linear; of its update, B is cut alike and A is whole."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        return _cut_update(self, module, device_mesh, {A: Replicate()}, Shard(0))


class LowRankRows(RowwiseParallel):
    """As RowwiseParallel cuts a Linear; of its update, A is cut alike and B is whole."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        self.desired_input_layouts: tuple[Placement, ...] = (Shard(-1),)
        return _cut_update(
            self, module, device_mesh, {B: Replicate(), "bias": Replicate()}, Shard(1)
        )


def _cut_update(
    style: ColwiseParallel | RowwiseParallel,
    module: nn.Module,
    mesh: DeviceMesh,
    placements: Mapping[str, Placement],
    usual: Placement,
) -> nn.Module:
    def cut(_: str, part: nn.Module, mesh: DeviceMesh) -> None:
        for name, parameter in list(part.named_parameters(recurse=False)):
            cut = distribute_tensor(parameter, mesh, [placements.get(name, usual)])
            learns = parameter.requires_grad
            part.register_parameter(name, nn.Parameter(cut, requires_grad=learns))

    enter = partial(style._prepare_input_fn, style.input_layouts, style.desired_input_layouts)
    leave = partial(style._prepare_output_fn, style.output_layouts, style.use_local_output)
    return distribute_module(module, mesh, cut, enter, leave)


def _style(word: str, updated: bool) -> ParallelStyle:
    """`updated`: for a Linear with a low-rank update."""
    columns = LowRankColumns if updated else ColwiseParallel
    rows = LowRankRows if updated else RowwiseParallel
    match word:
        case "embed":  # an embedding, cut by its rows; gives the sequence cut
            return RowwiseParallel(input_layouts=Replicate(), output_layouts=SEQUENCE)
        case "sequence":  # a norm on a part of the sequence
            return SequenceParallel(use_local_output=True)
        case "heads":  # a norm within heads, which dimension 2 counts
            return SequenceParallel(sequence_dim=2, use_local_output=True)
        case "gather":
            return Gather()
        case "columns":  # a Linear that gives this rank's features
            return columns()
        case "rows":  # a Linear that takes them, and adds up over the ranks
            return rows(output_layouts=SEQUENCE)
        case "head":  # from a cut sequence to whole rows of all features
            return columns(input_layouts=SEQUENCE, output_layouts=Replicate())
    raise BadPlugin(f"model.class: {ATTRIBUTE!r} has the word {word!r}, which means nothing")


def tensor_plan(model: nn.Module, name: str) -> Mapping[str, str]:
    """Raises BadPlugin for a class that has none."""
    plan: Mapping[str, str] | None = getattr(model, ATTRIBUTE, None)
    if plan is None:
        raise BadPlugin(
            f"parallel.tp: {name} has no attribute {ATTRIBUTE!r} that says how it may be cut; set "
            "parallel.tp = 1"
        )
    return plan


def cut_tensors(model: nn.Module, plan: Mapping[str, str], tp: DeviceMesh) -> None:
    """Cuts the modules in place; in a pipeline's stage, only those that are there. Tied weights
    must be tied again by the caller."""
    still = {name for name, p in model.named_parameters() if not p.requires_grad}
    for path, module in list(model.named_modules()):
        word = next((word for pattern, word in plan.items() if fnmatch.fnmatch(path, pattern)), "")
        if not word:
            continue
        if not isinstance(module, Absent):
            parallelize_module(module, tp, _style(word, isinstance(module, LowRank)))
        elif word == "embed":
            parallelize_module(module, tp, Enter())
        elif word == "head":
            parallelize_module(module, tp, Leave())
    for name, parameter in model.named_parameters():
        if name in still:  # some of torch's styles forget that
            parameter.requires_grad_(False)


def refuse_uneven(model: nn.Module, ranks: int) -> None:
    """Raises BadPlugin where heads cannot be dealt evenly."""
    config = getattr(model, "config", None)
    for what in ("heads", "kv_heads"):
        count = getattr(config, what, ranks)
        if isinstance(count, int) and count % ranks:
            raise BadPlugin(f"parallel.tp = {ranks} does not divide the model's {count} {what}")
