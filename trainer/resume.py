"""Where a run goes on: the newest checkpoint whose every byte is as committed.

Owns the choice and says what it passed over. A broken step is moved out of the way, not deleted, so
that its number can be committed again. Rank 0 does this, under the run's trainer lock, before any
rank loads.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backends.checkpoint import (
    CheckpointError,
    Manifest,
    Run,
    Unreadable,
    channel_names,
    clean,
    read_channel,
    verify,
)
from trainer.errors import RunMismatch, RunUnreadable

BROKEN = ".broken-"


@dataclass(frozen=True, slots=True)
class Start:
    """Where training begins; without a hash where there is nothing to go on from, although a
    version may be there whose weights are begun with: `parent` is its hash."""

    step: int = 0
    position: int = 0
    hash: str | None = None
    version: str | None = None
    notes: tuple[str, ...] = ()
    parent: str | None = None


def choose(run: Run, model: Mapping[str, Any], begins: int | None = None) -> Start:
    """`begins`: the step of this run from whose weights, and nothing else, `model.init` begins.
    Raises RunMismatch when the run holds another model than `model` (class and config), and
    RunUnreadable when a step cannot be read at all."""
    clean(run)
    notes: list[str] = []
    for step in reversed(run.steps()):
        try:
            manifest = verify(run, step)
        except Unreadable as error:
            # Says nothing about the bytes: moving the step away would be wrong.
            raise RunUnreadable(
                f"step {step} cannot be read now ({error}); try again when the file system answers"
            ) from error
        except CheckpointError as error:
            notes.append(_set_aside(run, step, error))
            continue
        _refuse_other(run, manifest, model)
        if notes:
            notes.append(f"going on from {manifest.version} instead")
        if step == begins or not any(file.startswith("state/") for file in manifest.files):
            # Weights to begin with (`model.init`): imported, or what other data had taught.
            return Start(step, 0, None, None, tuple(notes), manifest.hash)
        at, hash = manifest.position, manifest.hash
        return Start(step, at, hash, manifest.version, tuple(notes), hash)
    if notes:
        notes.append("no whole checkpoint is left: starting from the beginning")
    return Start(notes=tuple(notes))


def _set_aside(run: Run, step: int, error: CheckpointError) -> str:
    served = []
    for name in channel_names(run):
        try:
            channel = read_channel(run, name)
        except CheckpointError:
            continue
        if channel is not None and channel.step == step:
            served.append(name)
    folder = run.ckpt / f"{BROKEN}{step:08d}-{uuid.uuid4().hex[:8]}"
    with run.lock():
        run.disk.rename(run.folder(step), folder)
    note = f"step {step} is damaged ({error}); moved to {folder}"
    for name in served:
        note += (
            f"; channel {name} points at it: python -m trainer rollback {run.root} --channel {name}"
        )
    return note


def _refuse_other(run: Run, manifest: Manifest, model: Mapping[str, Any]) -> None:
    if dict(manifest.model) != dict(model):
        raise RunMismatch(
            f"{run.root} holds {manifest.model['class']} with {manifest.model.get('config')}, the "
            f"configuration says {model['class']} with {model['config']}; change it back, or start "
            "anew with run=FOLDER"
        )
