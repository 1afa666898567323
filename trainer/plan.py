"""The plan of a run, for `--dry-run`: mesh, parameters, steps and memory, before any of it is used.

Owns arithmetic only: the model is built without memory (device meta), no rank is contacted and no
file is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from trainer.config import TrainConfig
from trainer.data import Datasets, Split
from trainer.mesh import MeshPlan
from trainer.model import Definition
from trainer.optim import SLOTS
from trainer.parallel import units
from trainer.schedule import factor
from trainer.state import weights


@dataclass(frozen=True, slots=True)
class Plan:
    """Bytes are of the rank that holds most."""

    mesh: MeshPlan
    parameters: int
    parameters_per_rank: int
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    gathered_bytes: int
    split: Split
    samples: int
    held_out: int

    @property
    def device_bytes(self) -> int:
        own = self.weight_bytes + self.gradient_bytes + self.optimizer_bytes
        return own + self.gathered_bytes

    @property
    def staged_bytes(self) -> int:
        """The host copy that a commit is written from."""
        return self.weight_bytes + self.optimizer_bytes

    def lines(self, config: TrainConfig, start: str) -> Iterator[tuple[str, str]]:
        rows = [end - first for first, end in self.split.parts(0)]
        seen = config.steps * config.data.batch_size
        yield "run", f"{config.run} ({start})"
        yield "mesh", f"{self.mesh.ranks} ranks: {self.mesh}" if self.mesh.ranks > 1 else "1 rank"
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
        yield (
            "memory",
            f"{_size(self.device_bytes)} a rank and activations: weights "
            f"{_size(self.weight_bytes)}, gradients {_size(self.gradient_bytes)}, optimizer "
            f"{_size(self.optimizer_bytes)}, gathered {_size(self.gathered_bytes)}",
        )
        every = config.checkpoint.every
        yield (
            "checkpoints",
            (f"every {every} steps and at the end" if every else "at the end")
            + f", {config.checkpoint.mode}, {_size(self.staged_bytes)} of host memory a rank",
        )
        if config.publish.channel:
            gate = f" if {config.publish.require}" if config.publish.require else ""
            yield "publish", f"to {config.publish.channel}{gate}"


def plan(config: TrainConfig, definition: Definition, data: Datasets, mesh: MeshPlan) -> Plan:
    """Raises BadPlugin."""
    model = definition.on_meta()
    stored = weights(model).stored
    trained = {n: t for n, t in stored.items() if isinstance(t, nn.Parameter) and t.requires_grad}
    shards = mesh.dp_shard
    slots = len(SLOTS[config.optimizer.name])
    if config.optimizer.name == "sgd" and not config.optimizer.momentum:
        slots = 0
    gradients = sum(_shard_bytes(tensor, shards) for tensor in trained.values())
    return Plan(
        mesh=mesh,
        parameters=sum(tensor.numel() for tensor in trained.values()),
        parameters_per_rank=sum(_shard_numel(t, shards) for t in trained.values()),
        weight_bytes=sum(
            _shard_bytes(t, shards if isinstance(t, nn.Parameter) else 1) for t in stored.values()
        ),
        gradient_bytes=gradients,
        optimizer_bytes=gradients * slots,
        gathered_bytes=_gathered(model) if shards > 1 else 0,
        split=Split.of(config.data.batch_size, mesh.data_ranks, config.data.micro_batch),
        samples=len(data.train),
        held_out=len(data.held_out),
    )


def _shard_numel(tensor: Tensor, shards: int) -> int:
    """Elements on the fullest rank: FSDP cuts the first dimension."""
    if shards == 1 or not tensor.ndim:
        return tensor.numel()
    rows = tensor.shape[0]
    return -(-rows // shards) * (tensor.numel() // rows if rows else 0)


def _shard_bytes(tensor: Tensor, shards: int) -> int:
    return _shard_numel(tensor, shards) * tensor.element_size()


def _gathered(model: nn.Module) -> int:
    """What is whole at a time: the root's own parameters, which stay so through a step, and twice
    the largest unit, with its gradients, and the next one on its way."""
    blocks = [sum(p.nbytes for p in unit.parameters()) for unit in units(model)]
    root = sum(p.nbytes for p in model.parameters()) - sum(blocks)
    return 2 * root + 3 * max(blocks, default=0)


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} GiB"


def world_ranks(config: TrainConfig, started: int, asked: int | None) -> int:
    """For how many ranks to plan: those asked for, those started, or those the mesh names."""
    if asked is not None:
        return asked
    named = max(config.parallel.dp_replicate, 1) * max(config.parallel.dp_shard, 1)
    return started if started > 1 else named
