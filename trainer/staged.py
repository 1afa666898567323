"""Builds a pipeline's rank: its stages, each cut and sharded as a whole model is, and their order.

Owns the deal of layers to stages and of stages to ranks: rank r of n has the stages r, r + n, …
Invariant: a stage's tensors have the names and the first values that they have in the whole model.
"""

from __future__ import annotations

from torch import nn

from trainer.config import ComputeConfig, ParallelConfig
from trainer.errors import BadPlugin
from trainer.mesh import Mesh
from trainer.model import Definition
from trainer.parallel import Alone, Parallel, built, cut_and_shard, precision, repeats
from trainer.pipeline import Line, Pipelined, Stage
from trainer.stages import Cuts, check_counts, even, layer_count, stage_of
from trainer.ties import EndsSync, Ties, ends_group


def staged(
    definition: Definition,
    mesh: Mesh,
    config: ParallelConfig,
    compute: ComputeConfig,
    passes: int,
) -> Parallel:
    """See `parallel.parallelise`."""
    model, plan, line = built(definition, mesh), mesh.plan, _line(mesh, config)
    cuts = Cuts.of(model, definition.name)
    layers = layer_count(model, cuts)
    counts = check_counts(config.layers or even(layers, line.count), layers, line.count)
    _refuse(model, passes, config, line)
    ties = Ties.of(model)
    tied = bool(ties.groups) and (0 in line.mine or line.has_last)
    # The last rank has a tied weight under the name that it has on the first one, too.
    also = _tied_modules(model, cuts, ties) if tied and 0 not in line.mine else ()
    own = stage_of(model, cuts, counts, line.mine, also)
    parts = [stage_of(model, cuts, counts, [index]) for index in line.mine]
    run = precision(compute, mesh.device)
    stages = [
        Stage(part, index == line.count - 1, run)
        for part, index in zip(parts, line.mine, strict=True)
    ]
    cut_and_shard(stages, parts, own, ties, definition, mesh, compute)
    assert mesh.whole is not None
    ends = ends_group(mesh.whole) if ties.groups else None
    sync = EndsSync(ties.parameters(parts), ends) if ends is not None else None
    ranks = plan.data_ranks * plan.cp * mesh.unseen
    work = Pipelined(stages, line, config.schedule, passes, mesh.device, ranks, plan.tp)
    return Parallel(own, nn.ModuleList(stages), Alone(sync), work, _counted(own, ties, parts, tied))


def _line(mesh: Mesh, config: ParallelConfig) -> Line:
    assert mesh.whole is not None
    ranks, rank = mesh.plan.pp, mesh.stage_rank
    chunks = config.chunks if config.schedule == "interleaved" else 1
    mine = tuple(rank + ranks * chunk for chunk in range(chunks))
    return Line(mesh.whole.get_group("pp"), rank, ranks, mine, ranks * chunks)


def _refuse(model: nn.Module, passes: int, config: ParallelConfig, line: Line) -> None:
    """Raises BadPlugin for what a pipeline cannot do."""
    if passes < line.ranks or (config.schedule == "interleaved" and passes % line.ranks):
        least = "a multiple of" if config.schedule == "interleaved" else "at least"
        raise BadPlugin(
            f"data.micro_batch: {passes} micro-batches a rank, and a pipeline of {line.ranks} "
            f"needs {least} {line.ranks}; make them smaller, or data.batch_size larger"
        )
    if any(True for _ in model.buffers()) and len(model.state_dict()) > len(
        dict(model.named_parameters(remove_duplicate=False))
    ):
        raise BadPlugin("parallel.pp: the model keeps buffers, which stages would not agree on")


def _tied_modules(model: nn.Module, cuts: Cuts, ties: Ties) -> tuple[str, ...]:
    shared = {id(getattr(*owner)) for group in ties.groups for owner in group}
    found = []
    for path in cuts.before:
        module = model.get_submodule(path)
        mine = {id(parameter) for parameter in module.parameters()}
        if mine & shared and not ties.alone(module):
            raise BadPlugin(f"parallel.pp: {path} has a tied weight and others beside it")
        if mine & shared:
            found.append(path)
    return tuple(found)


def _counted(own: nn.Module, ties: Ties, parts: list[nn.Module], tied: bool) -> dict[str, int]:
    """Both ends of the pipeline count a tied weight."""
    found = repeats(own)
    if tied:
        twice = {id(parameter) for parameter in ties.parameters(parts)}
        for name, parameter in own.named_parameters():
            if id(parameter) in twice:
                found[name] = 2 * found.get(name, 1)
    return found
