"""The lives of the server's process and of a worker's, from configuration to exit status.

Owns the order of start and end, as `trainer.process` does for ranks; everything that a checkpoint
needs is built by the same functions.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict

import orjson

from trainer.build import Session, build_commits, gate_check
from trainer.data import HeldOutBatches
from trainer.elastic import Stop, World
from trainer.evaluate import Evaluator
from trainer.loop import Ending
from trainer.mesh import Mesh, MeshPlan
from trainer.metrics import Reporter
from trainer.resume import Start
from trainer.server.address import make_token, remove, write
from trainer.server.arrivals import ArrivalLog
from trainer.server.flow import TICK_S, Training
from trainer.server.hub import Hub
from trainer.server.keeper import Keeper
from trainer.server.spawn import Crew
from trainer.server.work import Workplace
from trainer.server.worker import Worker, where
from trainer.state import TrainState


def fingerprint(session: Session) -> str:
    """What a server and its workers must have in common."""
    config = session.loaded.config
    shared = {
        "seed": config.seed,
        "steps": config.steps,
        "deterministic": config.deterministic,
        "model": asdict(config.model),
        "data": [asdict(config.data), len(session.data.train)],
        "optimizer": asdict(config.optimizer),
        "schedule": asdict(config.schedule),
        "compute": asdict(config.compute),
        "sync": [config.sync.carries, config.sync.every, config.sync.dtype],
    }
    text = orjson.dumps(shared, default=str, option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def serve(session: Session, world: World, start: Start, stop: Stop, reporter: Reporter) -> Ending:
    """The server's run, with the workers that it starts here. Raises what training raises."""
    config, data = session.loaded.config, session.data
    place = Workplace(session, world.device)
    keeper = Keeper(config, place)
    state = TrainState(place.model, keeper.optimizer, keeper, keeper.average)
    folder = session.run.folder(start.step)
    if start.hash is not None and not state.load(folder, start.step, world.background):
        text = "the run was kept together differently: going on from what was agreed on"
        reporter.event("resume_note", f"! {text}", note=text)
    held_out = HeldOutBatches(data.held_out, config.evaluate.batch_size, 0, 1)
    mesh = Mesh(MeshPlan.of(config.parallel, 1), world.device, None, None, 0)
    log = ArrivalLog(config.folder, start.step, keeper.arrivals)
    training = Training(
        config,
        keeper,
        Evaluator(place.parallel.passes, held_out, 1, world.device),
        build_commits(session, world, mesh, state, start, reporter),
        log,
        stop,
        reporter,
        place.rate,
        gate_check(session.loaded),
    )
    try:
        return asyncio.run(_serve(session, training, keeper, reporter))
    finally:
        log.close()
        remove(config.folder)


async def _serve(
    session: Session, training: Training, keeper: Keeper, reporter: Reporter
) -> Ending:
    config, token = session.loaded.config, make_token(os.environ)
    hub = Hub(training, token, fingerprint(session), keeper.contribution_bytes, config.sync.lease_s)
    host, _, port = config.sync.address.rpartition(":")
    try:
        address = await hub.listen(host, int(port))
    except (OSError, OverflowError) as error:
        raise session.loaded.error("sync.address", f"cannot listen there: {error}") from error
    write(config.folder, address, token)
    reporter.event("listening", f"workers join at {address}", address=address)
    argv = [str(session.loaded.path), *session.loaded.overrides]
    crew = Crew(config.sync.workers, argv, token, reporter)
    tending = asyncio.create_task(_tend(crew, training))
    try:
        ending = await training.run()
        sent, received = hub.sent, hub.received
        reporter.event("exchanged", method="server", bytes=received, weights=sent)
        return ending
    finally:
        remove(config.folder)
        tending.cancel()
        await asyncio.gather(tending, return_exceptions=True)
        await hub.close()
        await asyncio.to_thread(crew.close)


async def _tend(crew: Crew, training: Training) -> None:
    while True:
        crew.tend()
        if crew.spent:
            training.give_up("the workers that it starts die again and again; see their messages")
        await asyncio.sleep(TICK_S)


def work(session: Session, world: World, stop: Stop, address: str | None) -> int:
    """A worker's life; returns its exit status."""
    place = Workplace(session, world.device)
    environ: Mapping[str, str] = os.environ
    find = where(session, address, environ)
    patience = session.loaded.config.sync.patience_s
    Worker(place, fingerprint(session), patience, find, stop).run()
    return 128 + stop.signal if stop.signal else 0
