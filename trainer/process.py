"""The life of one rank: prepare, join the others, lock the run, train, publish, say how it ended.

Owns the order of start and end; construction is in `build`, every decision elsewhere. Invariant:
nothing is written into the run's folder before rank 0 holds its lock.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import torch

from backends.checkpoint import CheckpointError
from trainer.build import Session, build_loop, prepare
from trainer.config import Loaded
from trainer.elastic import Place, Stop, World, choose_device, join
from trainer.errors import RunMismatch, TrainerError
from trainer.lock import RunLock
from trainer.loop import Ending, Loop
from trainer.metrics import Reporter, show
from trainer.plan import plan, world_ranks
from trainer.publish import Publisher
from trainer.reporting import open_reporter, tell_speed
from trainer.resume import Start, choose
from trainer.speed import Speed, describe
from trainer.state import check_lineage


def dry_run(loaded: Loaded, place: Place, asked: int | None) -> None:
    """Prints the plan for `asked` ranks (None: those started). Raises what `prepare` raises."""
    session = prepare(loaded, world_ranks(loaded.config, place.ranks, asked))
    start = _begins(session.run.steps(), loaded.config.steps)
    found = plan(loaded.config, session.definition, session.data, session.mesh)
    for name, text in found.lines(loaded.config, start):
        print(f"{name:<12} {text}")


def _begins(committed: list[int], steps: int) -> str:
    if not committed:
        return "starts from the beginning"
    newest = committed[-1]
    if newest >= steps:
        return f"is done: it is at step {newest}, steps = {steps}; a larger number goes on"
    return f"goes on from step {newest}"


def train(loaded: Loaded, environ: Mapping[str, str]) -> int:
    """Returns the process's exit status. Raises TrainerError or CheckpointError."""
    place = Place.of(environ)
    session = prepare(loaded, place.ranks)
    device = _device(loaded, place)
    stop = Stop()
    stop.listen()
    world = join(place, device, environ)
    locks: list[RunLock] = []
    try:
        world.leader(lambda: locks.append(RunLock(loaded.config.folder)))
        return _train(session, world, stop)
    finally:
        for lock in locks:
            lock.release()
        stop.close()
        world.close()


def _train(session: Session, world: World, stop: Stop) -> int:
    run = session.run
    start = world.leader(lambda: choose(run, session.model, session.begins))
    if start.parent is not None and start.hash is None and session.definition.source is None:
        raise RunMismatch(
            f"{run.root} holds weights that were imported, and the configuration does not start "
            f'from them; set model.init = "{run.root}@{start.step}", or start anew with run=FOLDER'
        )
    if start.hash is not None:
        world.leader(lambda: check_lineage(run.folder(start.step), session.lineage))
    reporter = open_reporter(session, world)
    try:
        _announce(session, world, start, reporter)
        return _go(session, world, start, stop, reporter)
    except (TrainerError, CheckpointError) as error:
        reporter.event("error", code=error.code, message=str(error))
        raise
    except RuntimeError as error:
        if "deterministic implementation" not in str(error):
            raise
        wrong = f"{str(error).split(', but')[0]}; set it to false to do without exact repetition"
        raise session.loaded.error("deterministic", wrong) from error
    finally:
        reporter.close()


def _go(session: Session, world: World, start: Start, stop: Stop, reporter: Reporter) -> int:
    steps = session.loaded.config.steps
    if start.step >= steps:
        text = f"nothing to train: the run is at step {start.step}, steps = {steps}"
        reporter.event("nothing_to_do", text, step=start.step)
        ending = Ending(start.step, start.position, start.version, {}, False, 0.0)
    else:
        tell_speed(reporter, session, world)
        ending = _run(session, world, start, stop, reporter)
    if ending.stopped:
        text = f"stopped; {ending.version} is committed, and the same command goes on from there"
        reporter.event("stop", text, step=ending.step, version=ending.version)
        # As the shell has it: 128 and the signal; only some ranks may have heard it.
        return 128 + (stop.signal or 15)
    if world.leads:
        _conclude(session, start, ending, reporter)
    return 0


def _run(session: Session, world: World, start: Start, stop: Stop, reporter: Reporter) -> Ending:
    if session.loaded.config.sync.method == "server":
        from trainer.server.process import serve

        return serve(session, world, start, stop, reporter)
    from trainer.partition.anew import train as train_anew

    def build(at: Start) -> Loop:
        return build_loop(session, world, at, stop, reporter)

    def newest() -> Start:
        return world.leader(lambda: choose(session.run, session.model, session.begins))

    return train_anew(build, start, newest)


def alone(loaded: Loaded, act: Callable[[Session, World], int]) -> int:
    """Acts on one device, with no rank beside this one, and without the run's lock."""
    session, place = prepare(loaded, 1), Place()
    device = _device(loaded, place)
    return act(session, World(place, device, None))


def _device(loaded: Loaded, place: Place) -> torch.device:
    """This rank's, set up as the configuration wants it."""
    try:
        device = choose_device(loaded.config.device, place)
    except ValueError as error:
        raise loaded.error("device", str(error)) from error
    if loaded.config.deterministic:
        # cuBLAS asks for this before the device is first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # Not `use_deterministic_algorithms`: that imports torch's compiler, a second of start-up.
        torch.set_deterministic_debug_mode("error")
        # A help for finding bugs, which writes all memory twice.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return device


def _announce(session: Session, world: World, start: Start, reporter: Reporter) -> None:
    config = session.loaded.config
    for note in start.notes:
        reporter.event("resume_note", f"! {note}", note=note)
    ranks = f"{world.ranks} ranks ({session.mesh})" if world.ranks > 1 else "1 rank"
    origin = start.version or "the beginning"
    reporter.event(
        "start",
        f"{config.run}  {session.definition.name} on {ranks}, {world.device.type}; from {origin} "
        f"to step {config.steps}",
        step=start.step,
        position=start.position,
        version=start.version,
        steps=config.steps,
        seed=config.seed,
        ranks=world.ranks,
        restarts=world.place.restarts,
    )


def _conclude(session: Session, start: Start, ending: Ending, reporter: Reporter) -> None:
    """Publishes, and says how the run ended. Raises CheckpointError when publishing fails."""
    manifest = session.run.manifest(ending.step)
    published = Publisher(session.run, session.loaded.config).publish(ending.step)
    for name, fields in published.events:
        reporter.event(name, **fields)
    lines = [
        *([f"held out   {show(manifest.evaluation)}"] if manifest.evaluation else []),
        f"version    {manifest.version}",
        f"channel    {published.text}",
    ]
    if ending.seconds:
        steps, samples = ending.step - start.step, ending.position - start.position
        speed = describe(Speed(reporter.speed.tokens, None, None).rates(samples / ending.seconds))
        lines.append(f"time       {steps} steps in {ending.seconds:.1f} s, {speed}")
    reporter.event(
        "end",
        "\n".join(lines),
        step=ending.step,
        version=manifest.version,
        channel=published.text,
        seconds=round(ending.seconds, 3),
        evaluation=dict(manifest.evaluation),
    )
