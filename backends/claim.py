"""A version's claim on its checkpoint, and what a load that failed means for it.

Owns the order in which every loader begins: lease, quarantine, identity. Invariant: what `claimed`
makes holds a lease on the very checkpoint that was asked for, and what fails holds none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from backends.checkpoint import (
    BadRecord,
    Cancelled,
    CheckpointError,
    Corrupt,
    Incomplete,
    Manifest,
    Quarantined,
    ReaderLease,
    Run,
    is_quarantined,
)
from backends.errors import BackendError, ModelFailed
from backends.reload_terms import Failure, LoadFailed, Target
from backends.tiers import NoRoom

T = TypeVar("T")


class WrongWeights(Exception):
    """The bytes are those that were committed, and no model comes of them."""


class NotFinite(WrongWeights):
    pass


class ProbeMismatch(WrongWeights):
    """The model does not answer as it did when the checkpoint was committed."""


def claimed(
    run: Run, target: Target, holder: str, make: Callable[[Manifest], T]
) -> tuple[T, ReaderLease]:
    """What `make` gives, under a lease that the caller gives up. Raises LoadFailed."""
    try:
        lease = ReaderLease(run, target.step, holder).acquire()
    except (CheckpointError, OSError) as error:
        raise LoadFailed(Failure.TRANSIENT, reason(error)) from error
    try:
        if is_quarantined(run, target.hash):
            raise Quarantined(f"version {target.version} is in quarantine")
        manifest = run.manifest(target.step)
        if manifest.hash != target.hash:
            raise BadRecord(
                f"the manifest's hash is {manifest.hash}, the channel says {target.hash}"
            )
        return make(manifest), lease
    except BaseException as error:  # a model's module may even raise SystemExit
        lease.release()
        raise LoadFailed(failure(error), reason(error)) from error


def failure(error: BaseException) -> Failure:
    """What follows of it."""
    if isinstance(error, LoadFailed):
        return error.failure
    if isinstance(error, Cancelled):
        return Failure.CANCELLED
    if isinstance(error, Corrupt | Incomplete | BadRecord | WrongWeights):
        return Failure.CORRUPT
    if isinstance(error, NoRoom):
        return Failure.CROWDED if error.alone else Failure.TRANSIENT
    if isinstance(error, Quarantined | BackendError):
        return Failure.REFUSED
    if isinstance(error, OSError | MemoryError | torch.OutOfMemoryError | CheckpointError):
        return Failure.TRANSIENT
    return Failure.REFUSED


def reason(error: BaseException) -> str:
    if isinstance(error, CheckpointError | BackendError | NoRoom | LoadFailed):
        return str(error)
    return ModelFailed.raised(error).message
