"""What a configuration wants divided anew, and with which division a start begins.

Owns the choice only. Collective where it says so.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from trainer.config import ParallelConfig, TrainConfig
from trainer.data import TrainBatches
from trainer.elastic import World
from trainer.mesh import Mesh, MeshPlan
from trainer.metrics import Reporter
from trainer.model import Definition
from trainer.parallel import Parallel
from trainer.partition.balance import Balance, Fixed, time_samples
from trainer.partition.deal import Layers, Line, known_counts
from trainer.partition.meshes import fit


def mesh_for(config: TrainConfig, ranks: int) -> MeshPlan:
    """Raises ValueError, saying how to make configuration and ranks agree."""
    plan = fit(config.parallel, ranks) if config.balance.mesh else None
    plan = plan or MeshPlan.of(config.parallel, ranks)
    if config.balance.samples and plan.ranks != plan.dp_replicate:
        raise ValueError(
            f"balance.samples goes with whole copies, as ranks that share one wait for each other "
            f"within a step; {plan} has none: set dp_replicate = -1 and dp_shard = 1"
        )
    return plan


def dealt(
    config: TrainConfig, definition: Definition, mesh: Mesh, passes: int, world: World
) -> tuple[ParallelConfig, Line | None]:
    """The layers of each stage, by what was measured before, where that is wanted. Collective."""
    if not config.balance.layers or mesh.plan.pp == 1:
        return config.parallel, None
    from trainer.stages import Cuts, even, layer_count

    model = definition.on_meta()
    chunks = config.parallel.chunks if config.parallel.schedule == "interleaved" else 1
    memory = config.balance.memory
    line = Line(
        layers=layer_count(model, Cuts.of(model, definition.name)),
        stages=mesh.plan.pp * chunks,
        mine=tuple(mesh.stage_rank + mesh.plan.pp * chunk for chunk in range(chunks)),
        passes=passes,
        memory=None if memory is None else memory // chunks,
        worth=config.balance.worth,
    )
    counts = world.leader(lambda: known_counts(config.folder, line))
    return replace(config.parallel, layers=counts or even(line.layers, line.stages)), line


def balance_of(
    config: TrainConfig,
    definition: Definition,
    line: Line | None,
    counts: tuple[int, ...] | None,
    parallel: Parallel,
    batches: TrainBatches,
    slots: int,
    world: World,
    reporter: Reporter,
) -> tuple[Parallel, Balance]:
    """What to train with, measured where that is wanted, and what divides by it."""
    if config.balance.samples and world.ranks > 1:
        return time_samples(parallel, batches, world.ranks, config.balance.worth, reporter)
    if line is None or counts is None:
        return parallel, Fixed()
    from trainer.stages import Cuts

    path = Cuts.of(definition.on_meta(), definition.name).layers
    folder: Path = config.folder
    layers = Layers(parallel, path, line, counts, slots, world.device, folder, reporter)
    return parallel, layers
