"""The plan of a run, for `--dry-run`: mesh, parameters, steps and memory, before any of it is used.

Owns arithmetic only: the model is built without memory (device meta), no rank is contacted and no
file is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch

from torch import Tensor, nn

from trainer.config import SyncConfig, TrainConfig
from trainer.data import Datasets, Split
from trainer.mesh import MeshPlan
from trainer.model import Definition
from trainer.optim import SLOTS
from trainer.parallel import units
from trainer.schedule import factor
from trainer.sizes import size
from trainer.stages import stage_models
from trainer.state import weights

# Of a class's `tensor_plan`: those under which a tensor is cut, not copied.
CUT_WORDS = ("embed", "columns", "rows", "head")


@dataclass(frozen=True, slots=True)
class Plan:
    """Bytes are of the rank that holds most."""

    mesh: MeshPlan
    parameters: int
    parameters_per_rank: int
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    average_bytes: int
    sync_bytes: int
    gathered_bytes: int
    split: Split
    samples: int
    held_out: int

    @property
    def device_bytes(self) -> int:
        own = self.weight_bytes + self.gradient_bytes + self.optimizer_bytes
        return own + self.average_bytes + self.sync_bytes + self.gathered_bytes

    @property
    def staged_bytes(self) -> int:
        """The host copy that a commit is written from."""
        own = self.weight_bytes + self.optimizer_bytes
        return own + self.average_bytes + self.sync_bytes

    def lines(self, config: TrainConfig, start: str) -> Iterator[tuple[str, str]]:
        rows = [end - first for first, end in self.split.parts(0)]
        seen = config.steps * config.data.batch_size
        yield "run", f"{config.run} ({start})"
        yield "mesh", f"{self.mesh.ranks} ranks: {self.mesh}" if self.mesh.ranks > 1 else "1 rank"
        if text := describe_sync(config.sync, self.mesh):
            yield "sync", text
        yield "parameters", f"{self.parameters:,}, {self.parameters_per_rank:,} on a rank"
        yield "data", f"{self.samples:,} samples, {self.held_out:,} held out"
        accumulated = f" in {len(rows)} passes" if len(rows) > 1 else ""
        yield (
            "steps",
            f"{config.steps:,} × {config.data.batch_size} samples ({sum(rows)} on rank 0"
            f"{accumulated}) = {seen:,} samples, {seen / self.samples:.1f} epochs",
        )
        first, last = (factor(config.schedule, s, config.steps) for s in (1, config.steps))
        lr = config.optimizer.lr
        yield (
            "optimizer",
            f"{config.optimizer.name}, lr {lr * first:.3g} → {lr:.3g} → {lr * last:.3g} "
            f"({config.schedule.name}, {config.schedule.warmup} steps of warm-up)",
        )
        parts = {
            "weights": self.weight_bytes,
            "gradients": self.gradient_bytes,
            "optimizer": self.optimizer_bytes,
            "average": self.average_bytes,
            "sync": self.sync_bytes,
            "gathered": self.gathered_bytes,
        }
        told = ", ".join(f"{name} {size(nbytes)}" for name, nbytes in parts.items() if nbytes)
        yield "memory", f"{size(self.device_bytes)} a rank and activations: {told}"
        every = config.checkpoint.every
        yield (
            "checkpoints",
            (f"every {every} steps and at the end" if every else "at the end")
            + f", {config.checkpoint.mode}, {size(self.staged_bytes)} of host memory a rank",
        )
        if config.publish.channel:
            gate = f" if {config.publish.require}" if config.publish.require else ""
            yield "publish", f"to {config.publish.channel}{gate}"


def plan(config: TrainConfig, definition: Definition, data: Datasets, mesh: MeshPlan) -> Plan:
    """Raises BadPlugin."""
    whole = definition.on_meta()
    model, held = _fullest(whole, config, definition, mesh)
    named = dict(model.named_parameters())
    slots = len(SLOTS[config.optimizer.name])
    if config.optimizer.name == "sgd" and not config.optimizer.momentum:
        slots = 0
    trained = {name: count for name, count in held.items() if _learns(named.get(name))}
    gradients = sum(count * named[name].element_size() for name, count in trained.items())
    stored = weights(model).stored
    roots = mesh.dp_replicate if config.sync.method == "broadcast" else 1
    return Plan(
        mesh=mesh,
        parameters=sum(p.numel() for p in whole.parameters() if p.requires_grad),
        parameters_per_rank=sum(trained.values()),
        weight_bytes=sum(count * stored[name].element_size() for name, count in held.items()),
        gradient_bytes=gradients,
        optimizer_bytes=-(-gradients * slots // roots),
        average_bytes=gradients if config.optimizer.ema is not None else 0,
        sync_bytes=gradients * _copies(config.sync),
        gathered_bytes=_gathered(model) // mesh.tp if mesh.shard_ranks > 1 else 0,
        split=Split.of(config.data.batch_size, mesh.data_ranks, config.data.micro_batch),
        samples=len(data.train),
        held_out=len(data.held_out),
    )


def describe_sync(sync: SyncConfig, mesh: MeshPlan) -> str:
    """How replicas are kept together; nothing where there is one."""
    copies = mesh.dp_replicate
    often = "step" if sync.every == 1 else f"{sync.every} steps"
    if sync.method == "server":
        stale = "any staleness" if sync.staleness < 0 else f"staleness {sync.staleness} at most"
        what = f"{sync.carries} of {'a step' if sync.every == 1 else often}"
        return f"server, {sync.workers} workers started here: {what}, {stale}"
    if copies == 1:
        return ""
    if sync.method == "broadcast":
        return f"broadcast: {copies} replicas, each the root of a part of the parameters"
    if sync.method == "accumulate":
        return f"accumulate: {copies} replicas exchange {sync.carries} every {often}"
    return f"gradients: the mean over {copies} replicas in every step"


def _copies(sync: SyncConfig) -> int:
    """What a rank keeps of what learns beside the weights: what was agreed on, what travels, and
    the outer optimizer's momentum."""
    momentum = bool(sync.outer_momentum) and sync.carries == "deltas"
    if sync.method == "accumulate":
        return 2 + momentum
    if sync.method == "server":
        return momentum * (2 if sync.staleness else 1)
    return 0


def _learns(tensor: nn.Parameter | None) -> bool:
    return tensor is not None and tensor.requires_grad


def _fullest(
    model: nn.Module, config: TrainConfig, definition: Definition, mesh: MeshPlan
) -> tuple[nn.Module, dict[str, int]]:
    """The part of the model that the fullest rank of a pipeline has, and how many elements of each
    tensor it holds."""
    cut: dict[str, str] = {}
    if mesh.tp > 1:
        from trainer.tensor_parallel import refuse_uneven, tensor_plan

        refuse_uneven(model, mesh.tp)
        cut = dict(tensor_plan(model, definition.name))
    parts = [model]
    if mesh.pp > 1:
        parts = list(stage_models(model, config.parallel, definition.name))
    held = [(part, _held(part, cut, mesh)) for part in parts]
    return max(held, key=lambda one: sum(one[1].values()))


def _held(model: nn.Module, cut: Mapping[str, str], mesh: MeshPlan) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, tensor in weights(model).stored.items():
        module = name.rpartition(".")[0]
        word = next((w for pattern, w in cut.items() if fnmatch(module, pattern)), "")
        ranks = mesh.tp if word in CUT_WORDS else 1
        parameter = isinstance(tensor, nn.Parameter)
        found[name] = _shard_numel(tensor, mesh.shard_ranks if parameter else 1, ranks)
    return found


def _shard_numel(tensor: Tensor, shards: int, ranks: int) -> int:
    """Elements on the fullest rank: FSDP cuts the first dimension, tp the first or the second."""
    if not tensor.ndim or not tensor.numel():
        return tensor.numel()
    rows, rest = tensor.shape[0], -(-tensor.numel() // tensor.shape[0] // ranks)
    return -(-rows // shards) * rest


def _gathered(model: nn.Module) -> int:
    """What is whole at a time: the root's own parameters, which stay so through a step, and twice
    the largest unit, with its gradients, and the next one on its way."""
    blocks = [sum(p.nbytes for p in unit.parameters()) for unit in units(model)]
    root = sum(p.nbytes for p in model.parameters()) - sum(blocks)
    return 2 * root + 3 * max(blocks, default=0)


def world_ranks(config: TrainConfig, started: int, asked: int | None) -> int:
    """For how many ranks to plan: those asked for, those started, or those the mesh names."""
    if asked is not None:
        return asked
    parallel = config.parallel
    data = max(parallel.dp_replicate, 1) * max(parallel.dp_shard, 1)
    named = data * parallel.cp * parallel.tp * parallel.pp
    return started if started > 1 else named
