"""Replaying a run from its arrival log: the same contributions, in the same order, once more.

Owns the comparison. What was asynchronous is then a computation like any other: if the weights do
not come out bit-equal, something is wrong with the machine, the libraries or this program.
Invariant: nothing in the run's folder is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.build import Session
from trainer.server.arrivals import Commit, LogUnreadable, read
from trainer.server.keeper import Keeper
from trainer.server.layout import digest
from trainer.server.work import Workplace
from trainer.state import EMA, TrainState


@dataclass(frozen=True, slots=True)
class Replayed:
    """`wrong` says what differs first; None if nothing does."""

    step: int
    version: str
    arrivals: int
    staleness: int  # the most changes that a contribution had not seen
    workers: int
    wrong: str | None


def replay(session: Session, device: torch.device, step: int | None) -> Replayed:
    """Up to the checkpoint of `step`, or the newest that the log tells of. Raises LogUnreadable."""
    run = session.run
    log = read(run.root)
    commit = _choose(log.commits, run.steps(), step)
    place, keeper = _begin(session, device, log.origin)
    arrivals = log.arrivals[: commit.arrivals]
    staleness, wrong = 0, None
    needed = {arrival.base: index for index, arrival in enumerate(arrivals)}
    history: dict[int, Tensor] = {}
    worker = Workplace(session, device)
    for index, arrival in enumerate(arrivals):
        if keeper.version in needed and keeper.version not in history:
            history[keeper.version] = keeper.packed()[1]
        worker.load(history[arrival.base])
        found = worker.contribute(arrival.ticket).packed
        if digest(found) != arrival.hash:
            wrong = f"the contribution to ticket {arrival.ticket.number} ({arrival.worker})"
            break
        staleness = max(staleness, keeper.version - arrival.base)
        keeper.change(arrival.ticket, found)
        if needed[arrival.base] == index:
            del history[arrival.base]
    manifest = run.manifest(commit.step)
    if wrong is None:
        # The resume state, as what is served may be another dtype, or merged.
        stored = _learnt(*_begin(session, device, commit.step))
        wrong = _first_difference(_learnt(place, keeper), stored)
    workers = len({arrival.worker for arrival in arrivals})
    return Replayed(commit.step, manifest.version, len(arrivals), staleness, workers, wrong)


def _begin(session: Session, device: torch.device, step: int) -> tuple[Workplace, Keeper]:
    """The server's weights at a checkpoint, or at the very beginning."""
    place = Workplace(session, device)
    keeper = Keeper(session.loaded.config, place)
    if step:
        state = TrainState(place.model, keeper.optimizer, keeper, keeper.average)
        state.load(session.run.folder(step), step, None)
    return place, keeper


def _choose(commits: Sequence[Commit], steps: Sequence[int], step: int | None) -> Commit:
    known = {commit.step: commit for commit in commits if commit.step in steps}
    if step is None and known:
        return known[max(known)]
    if step is None or step not in known:
        have = ", ".join(map(str, sorted(known))) or "none"
        raise LogUnreadable(f"the log leads to no such checkpoint; it leads to {have}")
    return known[step]


def _learnt(place: Workplace, keeper: Keeper) -> dict[str, Tensor]:
    """The weights, and their average where there is one."""
    average = {} if keeper.average is None else keeper.average.tensors
    return place.tensors | {EMA + name: tensor for name, tensor in average.items()}


def _first_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> str | None:
    for name, tensor in ours.items():
        if not torch.equal(tensor, theirs[name]):
            return f"tensor {name}"
    return None
