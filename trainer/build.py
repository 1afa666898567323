"""Builds one training: every object of a rank, wired through constructors.

Owns no behaviour. `prepare` is everything that can fail before a rank is contacted or a file is
written; `build_loop` is collective.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from backends.checkpoint import Run
from backends.models.decoder import Decoder
from trainer.average import Average
from trainer.commits import Commits
from trainer.committer import Committer, Record
from trainer.config import Loaded
from trainer.data import Datasets, HeldOutBatches, TrainBatches, open_data
from trainer.elastic import Stop, World
from trainer.evaluate import Evaluator
from trainer.export import Table, export_table
from trainer.loop import Loop, Parts
from trainer.mesh import Mesh, MeshPlan, open_mesh
from trainer.metrics import Reporter
from trainer.model import Definition, define
from trainer.optim import Optimizer
from trainer.parallel import parallelise
from trainer.partition.choose import balance_of, dealt, mesh_for
from trainer.probe import Prober, TextProber, probe_inputs, prompts
from trainer.publish import Publisher
from trainer.pulse import Apart, Pulse, Reading
from trainer.resume import Start
from trainer.source import Source
from trainer.state import Lineage, Snapshot, TrainState
from trainer.sync import choose_method, refuse_mesh, replica_mesh, updated_here
from trainer.weights import WeightFiles


@dataclass(frozen=True)
class Session:
    """What is known before any rank is contacted."""

    loaded: Loaded
    mesh: MeshPlan
    definition: Definition
    data: Datasets

    @property
    def run(self) -> Run:
        return Run(self.loaded.config.folder)

    @property
    def model(self) -> dict[str, Any]:
        """As the manifest names it."""
        return {"class": self.definition.name, "config": dict(self.definition.arguments)}

    @property
    def begins(self) -> int | None:
        """The step of this very run from whose weights it begins, if it does."""
        source = self.definition.source
        return source.step if source is not None and _is_own(source, self.loaded) else None

    @property
    def lineage(self) -> Lineage:
        config = self.loaded.config
        data, samples = self.data.fingerprint, len(self.data.train)
        data = f"{config.data.class_}#{data}" if data else config.data.class_
        return Lineage(config.seed, config.optimizer.name, data, samples, self.definition.origin)

    @property
    def files(self) -> dict[str, bytes]:
        """Published beside the weights; a tokenizer of the data is newer than the source's."""
        source = self.definition.source
        return (source.tokenizer_files() if source else {}) | dict(self.data.files())

    @cached_property
    def table(self) -> Table:
        """What is published."""
        config, definition = self.loaded.config, self.definition
        return export_table(
            definition.on_meta(),
            definition.served_on_meta(),
            dtype=config.checkpoint.dtype,
            scale=config.lora.scale,
            ema=config.optimizer.ema is not None,
        )


def prepare(loaded: Loaded, ranks: int) -> Session:
    """Raises ConfigError or BadPlugin."""
    config, root = loaded.config, loaded.root
    try:
        mesh = mesh_for(config, ranks)
    except ValueError as error:
        raise loaded.error("parallel", str(error)) from error
    try:
        refuse_mesh(config.sync, mesh)
    except ValueError as error:
        raise loaded.error("sync.method", str(error)) from error
    definition = define(config.model, root, config.seed, config.lora)
    _refuse_source(loaded, definition)
    data = open_data(config.data, root)
    return Session(loaded, mesh, definition.sized(data.counts), data)


def _refuse_source(loaded: Loaded, definition: Definition) -> None:
    """A run may begin again from a version of its own, if that stays where it is."""
    source, config = definition.source, loaded.config
    if source is None or not _is_own(source, loaded):
        return
    if not source.pinned:
        raise loaded.error(
            "model.init", f'is this run: name the step, "{config.run}@{source.step}"'
        )
    every = config.checkpoint.keep_every
    if every is None or source.step % every:
        fix = f"step {source.step} of this run must stay, as model.init names it"
        raise loaded.error("checkpoint.keep_every", f"{fix}; set this to a number that divides it")


def _is_own(source: Source, loaded: Loaded) -> bool:
    return source.run is not None and source.run.resolve() == loaded.config.folder.resolve()


def _refuse_vocabulary(session: Session) -> None:
    """Where a model of tokens says how many it knows."""
    known = getattr(getattr(session.definition.on_meta(), "config", None), "vocabulary", None)
    needed = getattr(session.data.train, "vocabulary", None)
    if isinstance(known, int) and needed is not None and needed > known:
        fix = f"it knows {known} tokens, and the data has {needed}; set model.config.vocab_size"
        raise session.loaded.error("model.config", f"{fix} to that, or more")


def build_loop(
    session: Session, world: World, start: Start, stop: Stop, reporter: Reporter
) -> Loop:
    """Everything that trains, with the state of `start`. Collective."""
    config, data = session.loaded.config, session.data
    mesh = open_mesh(session.mesh, world.device, world.rank)
    inner = replica_mesh(config.sync, mesh)
    rank, ranks = mesh.data_rank, mesh.plan.data_ranks
    longest = max(getattr(s, "longest", None) or 0 for s in (data.train, data.held_out))
    batches = TrainBatches(data.train, config.data, config.seed, rank, ranks)
    passes, definition = batches.split.passes, session.definition
    _refuse_vocabulary(session)
    layout, line = dealt(config, definition, mesh, passes, world)
    parallel = parallelise(definition, inner, layout, config.compute, passes, longest or None)
    sync = choose_method(config.sync, mesh, parallel)
    updated = updated_here(sync, parallel.model)
    optimizer = Optimizer(updated, config.optimizer, parallel.repeats)
    decay, frozen = config.optimizer.ema, session.definition.source is None
    average = None
    if decay is not None:
        # All that learns, also where another rank's optimizer steps it.
        named = dict(parallel.model.named_parameters())
        average = Average(named, decay, parallel.objective, sync.stored)
    state = TrainState(parallel.model, optimizer, sync, average, frozen=frozen)
    if start.hash is not None:
        folder = session.run.folder(start.step)
        if not state.load(folder, start.step, world.background):
            text = "replicas were kept together differently: going on from what they had agreed on"
            reporter.event("resume_note", f"! {text}", note=text)
    slots, counts = len(optimizer.slots), layout.layers
    parallel, balance = balance_of(
        config, definition, line, counts, parallel, batches, slots, world, reporter
    )
    held_out = HeldOutBatches(data.held_out, config.evaluate.batch_size, rank, ranks)
    parts = Parts(
        parallel=parallel,
        sync=sync,
        optimizer=optimizer,
        average=average,
        batches=batches,
        evaluator=Evaluator(parallel.passes, held_out, world.ranks, world.device),
        commits=build_commits(session, world, inner, state, start, reporter),
        pulse=_pulse(session, world, mesh),
        stop=stop,
        reporter=reporter,
        align=state.align_buffers if ranks * mesh.plan.cp > 1 else lambda: None,
        check=gate_check(session.loaded),
        balance=balance,
    )
    return Loop(config, parts, world.device, rank * mesh.plan.cp + mesh.sequence_rank)


def _pulse(session: Session, world: World, mesh: Mesh) -> Pulse:
    plan, sync = session.mesh, session.loaded.config.sync
    if sync.method == "gradients":
        return Pulse(world.ranks, plan.dp_replicate, world.device)
    if sync.method == "broadcast":  # each gradient is whole on its root, and nowhere else
        return Pulse(world.ranks, 1, world.device)
    count, size = plan.dp_replicate, plan.replica_ranks
    shape = Apart(sync.every, count, size, mesh.within(), mesh.between())
    return Pulse(world.ranks, 1, world.device, shape)


def build_commits(
    session: Session,
    world: World,
    mesh: Mesh,
    state: TrainState,
    start: Start,
    reporter: Reporter,
) -> Commits:
    """What commits the run's state, and hears how that ended. Collective."""
    config = session.loaded.config.checkpoint
    snapshot = Snapshot(state, mesh.host)
    committer = Committer(
        session.run,
        world,
        config,
        _record(session),
        snapshot,
        _weight_files(session, world, snapshot),
        _prober(session, reporter) if world.leads and config.probe else None,
        # Never used before in this run, also not by a process that died.
        attempt=world.leader(lambda: f"{world.place.restarts}_{uuid.uuid4().hex[:8]}"),
        parent=start.parent,
        publisher=Publisher(session.run, session.loaded.config) if world.leads else None,
    )
    return Commits(committer, reporter, start.version, config.on_failure)


def _record(session: Session) -> Record:
    table = session.table
    return Record(session.model, table.forms, table.ties, session.lineage, session.files)


def _weight_files(session: Session, world: World, snapshot: Snapshot) -> WeightFiles:
    limit, table = session.loaded.config.checkpoint.shard_size, session.table.tensors
    return WeightFiles(snapshot.tensors, table, world.rank, world.ranks, world.background, limit)


def _prober(session: Session, reporter: Reporter) -> Prober | TextProber | None:
    rows, held_out = session.loaded.config.checkpoint.probe, session.data.held_out
    if issubclass(session.definition.class_, Decoder):
        return TextProber(session.definition.served_on_meta, prompts(held_out, rows))
    model = session.definition.in_memory()
    inputs = probe_inputs(model, held_out, rows)
    if isinstance(inputs, str):
        reporter.event("no_probe", f"! manifests have no probe: {inputs}", reason=inputs)
        return None
    return Prober(model, inputs)


def gate_check(loaded: Loaded) -> Callable[[Reading], None]:
    """Refuses a gate on metrics that the model does not report, at the first step, not the last."""

    def check(reading: Reading) -> None:
        measured = ["loss", *reading.metrics]
        for name in loaded.config.publish.require.unknown(measured):
            fix = f"the model reports no {name!r}; it reports {', '.join(measured)}"
            raise loaded.error("publish.require", fix)

    return check
