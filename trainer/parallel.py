"""The model over the mesh: cut into stages and over ranks, sharded or copied, and its gradients.

Owns the order (stages, tensor cut, recomputation and compilation, FSDP2, first values) and the
choice of what follows from the mesh: one rank alone; copies (`replicate`); FSDP2 over dp_shard,
copied over dp_replicate (HSDP); tp cuts layers, pp deals them out, cp cuts sequences. It never
steps, clips or saves. Invariant: after `after_backward` every rank's gradients are the mean over
the data ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trainer.blocks import compile_blocks, recompute_blocks
from trainer.config import ComputeConfig, ParallelConfig
from trainer.errors import BadPlugin
from trainer.mesh import Mesh
from trainer.model import Definition
from trainer.passes import Direct, Passes, Precision
from trainer.replicate import Replicated
from trainer.sequence import Fit, Fitted
from trainer.shards import is_sharded
from trainer.ties import EndsSync, Ties

# A smaller block costs a collective of its own for less than that hides.
UNIT_PARAMETERS = 1 << 18


class Objective(nn.Module):
    """The model as a function from a batch to its loss, so that every wrapper sees one forward."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        return self.model.loss(batch)  # type: ignore[operator, no-any-return]


class GradientSync(Protocol):
    """When gradients travel. Other methods of synchronisation join here."""

    def before_backward(self, last: bool) -> None:
        """Before each micro-batch's backward; `last` is the step's last one."""

    def after_backward(self) -> None:
        """After the last: gradients are then the mean over the ranks."""


class Alone:
    """One rank, or a pipeline's, whose schedule does it: there is nothing to do but for ties."""

    def __init__(self, ends: EndsSync | None = None) -> None:
        self._ends = ends

    @property
    def tied(self) -> tuple[nn.Parameter, ...]:
        """Those of this rank that another end of the pipeline has too."""
        return () if self._ends is None else self._ends.parameters

    def before_backward(self, last: bool) -> None:
        pass

    def after_backward(self) -> None:
        if self._ends is not None:
            self._ends()


class Sharded:
    """FSDP2 reduces by itself during backward."""

    def __init__(self, objective: Any) -> None:
        self._objective = objective

    def before_backward(self, last: bool) -> None:
        self._objective.set_requires_gradient_sync(last)
        self._objective.set_is_last_backward(last)

    def after_backward(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Parallel:
    """`model` has this rank's modules under their names in the whole one. `repeats` says in how
    many places the norm would count a parameter."""

    model: nn.Module
    objective: nn.Module
    sync: GradientSync
    passes: Passes
    repeats: Mapping[str, int] = field(default_factory=dict)


def parallelise(
    definition: Definition,
    mesh: Mesh,
    config: ParallelConfig,
    compute: ComputeConfig,
    passes: int,
    longest: int | None = None,
) -> Parallel:
    """Builds the model, cuts, shards or copies it, and gives it its first values. Collective.

    `passes` is how many micro-batches a step has, `longest` how many tokens the longest sequence
    has where they differ. Raises BadPlugin where the model cannot be cut.
    """
    parallel = _parallelise(definition, mesh, config, compute, passes)
    plan = mesh.plan
    whole = longest if plan.pp > 1 else None  # stages know in advance what travels
    fit = Fit(plan.cp, mesh.sequence_rank, plan.tp, whole)
    if not fit.changes:
        return parallel
    return replace(parallel, passes=Fitted(parallel.passes, fit))


def _parallelise(
    definition: Definition,
    mesh: Mesh,
    config: ParallelConfig,
    compute: ComputeConfig,
    passes: int,
) -> Parallel:
    if mesh.plan.pp > 1:
        from trainer.staged import staged  # loads torch's pipelines, which few runs need

        return staged(definition, mesh, config, compute, passes)
    model = built(definition, mesh)
    objective = Objective(model)
    cut_and_shard([objective], [model], model, Ties.of(model), definition, mesh, compute)
    plan = mesh.plan
    if mesh.shards is not None:
        sync: GradientSync = Sharded(objective)
    elif plan.data_ranks == 1:
        sync = Alone()
    else:
        trained = [p for p in model.parameters() if p.requires_grad]
        sync = Replicated(trained, plan.data_ranks)
    ranks = plan.data_ranks * plan.cp * mesh.unseen
    run = Direct(objective, ranks, plan.tp, precision(compute, mesh.device))
    return Parallel(model, objective, sync, run, repeats(model))


def built(definition: Definition, mesh: Mesh) -> nn.Module:
    """The whole model, without values yet where it fills its own."""
    model = definition.build()
    if mesh.sequence is not None:
        from trainer.context import cut_context

        cut_context(model, definition.name, mesh.sequence, mesh.sequence_rank, mesh.plan.cp)
    return model


def cut_and_shard(
    roots: Sequence[nn.Module],
    parts: Sequence[nn.Module],
    model: nn.Module,
    ties: Ties,
    definition: Definition,
    mesh: Mesh,
    compute: ComputeConfig,
) -> None:
    """What happens to each part of the model; `roots` are what is called, one around each part."""
    if mesh.plan.tp > 1:
        from trainer.tensor_parallel import cut_tensors, refuse_uneven, tensor_plan

        assert mesh.whole is not None
        refuse_uneven(model, mesh.plan.tp)
        plan = tensor_plan(model, definition.name)
        for part in parts:
            cut_tensors(part, plan, mesh.whole["tp"])
        ties.tie(parts)
        _refuse_whole(parts)
    for part in parts:
        recompute_blocks(part, compute.recompute)
        if compute.compile:
            compile_blocks(part)
    if mesh.shards is not None:
        for root, part in zip(roots, parts, strict=True):
            _shard(root, part, mesh.shards, compute)
        ties.tie(parts)
    if not definition.fills and mesh.shards is None:
        model.to(mesh.device)
    definition.fill(model, mesh.device)


def precision(compute: ComputeConfig, device: torch.device) -> Precision:
    if compute.precision == "fp32":
        return nullcontext

    def bf16() -> AbstractContextManager[object]:
        return torch.autocast(device.type, torch.bfloat16)

    return bf16


def repeats(model: nn.Module) -> dict[str, int]:
    """For parameters that several ranks of "tp" hold alike."""
    from trainer.shards import repeats as count

    found = {name: count(p, "tp") for name, p in model.named_parameters()}
    return {name: times for name, times in found.items() if times > 1}


def _refuse_whole(parts: Sequence[nn.Module]) -> None:
    """With tp, a parameter outside the plan would have another gradient on every rank."""
    for part in parts:
        for name, parameter in part.named_parameters():
            if not is_sharded(parameter):
                raise BadPlugin(f"model.class: its 'tensor_plan' says nothing of {name}")


def _shard(root: nn.Module, part: nn.Module, shards: Any, compute: ComputeConfig) -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy()
    if compute.precision == "bf16":
        # Half the bytes to gather; gradients are added up in full precision.
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for unit in units(part):
        fully_shard(unit, mesh=shards, mp_policy=policy)
    fully_shard(root, mesh=shards, mp_policy=policy)


def units(model: nn.Module) -> Iterator[nn.Module]:
    """Blocks that are gathered one at a time: the large elements of module lists, inner first."""
    for child in model.children():
        yield from units(child)
    if isinstance(model, nn.ModuleList):
        for block in model:
            if sum(p.numel() for p in block.parameters()) >= UNIT_PARAMETERS:
                yield block
