"""Opens what a run reports through: the journal, the view, the sinks, and what speed means for it.

Owns the choice by configuration and terminal. Only rank 0 has any of it.
"""

from __future__ import annotations

import sys

import torch

from trainer.build import Session
from trainer.elastic import World
from trainer.metrics import Journal, Live, Plain, Reporter, Sink, View
from trainer.model import Definition
from trainer.speed import Speed, count_flops, memory, peak


def open_reporter(session: Session, world: World) -> Reporter:
    """Raises BadAddress."""
    config = session.loaded.config
    if not world.leads:
        return Reporter(None, None, every=config.log_every, batch_size=config.data.batch_size)
    journal = Journal(config.folder / "metrics.jsonl")
    view: View = (Live if sys.stdout.isatty() else Plain)(sys.stdout, config.steps)
    sinks: list[Sink] = []
    if config.metrics.tensorboard:
        from trainer.tensorboard import TensorBoard

        sinks.append(TensorBoard(config.folder / "tensorboard"))
    if config.metrics.prometheus is not None:
        from trainer.exporter import Exporter

        sinks.append(Exporter(config.metrics.prometheus))
    batch = config.data.batch_size
    return Reporter(journal, view, every=config.log_every, batch_size=batch, sinks=sinks)


def tell_speed(reporter: Reporter, session: Session, world: World) -> None:
    """What a second is worth in this run; on rank 0, before training begins."""
    if world.leads:
        reporter.speed = Speed(session.data.tokens_per_sample, None, None)
        reporter.measure = lambda: measure(session, world)
        reporter.memory = lambda: memory(world.device)


def measure(session: Session, world: World) -> Speed:
    config = session.loaded.config
    flops = flops_per_sample(session.definition, session)
    given = config.metrics.peak_tflops
    dtype = torch.bfloat16 if config.compute.precision == "bf16" else torch.float32
    each = given * 1e12 if given is not None else peak(world.device, dtype)
    if world.device.type == "cpu" and given is None:
        # What was measured is of all cores, which the ranks of a host share.
        each /= world.ranks
    return Speed(session.data.tokens_per_sample, flops, each * world.ranks)


def flops_per_sample(definition: Definition, session: Session) -> float | None:
    """Counted on as many samples as a pass takes: some work is done once for all of them."""
    source, data = session.data.train, session.loaded.config.data
    share = -(-data.batch_size // session.mesh.data_ranks)
    rows = min(data.micro_batch or share, share, len(source))
    counted = count_flops(definition.on_meta().loss, source.take(torch.arange(rows)))  # type: ignore[arg-type]
    return None if counted is None else counted / rows
