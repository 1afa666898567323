"""The terms of a reload: its states, what ends a load, and what the shell is to do.

Owns no decision; `reload` makes them. Invariant: a target names one content, wherever a channel
points at it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Stage(StrEnum):
    IDLE = "idle"
    ADMIT = "admit"
    LOAD = "load"
    VERIFY = "verify"
    READY = "ready"
    SWAP = "swap"
    PROBATION = "probation"


LOADING = (Stage.ADMIT, Stage.LOAD, Stage.VERIFY)


class Failure(StrEnum):
    """Why a load ended without a version, and so what follows."""

    CANCELLED = "cancelled"  # a newer one is wanted
    TRANSIENT = "transient"  # tried again: the disk, the memory
    CROWDED = "crowded"  # tried again, and better in a new process: no room for two
    REFUSED = "refused"  # not tried again here: the model raises, the class is missing
    CORRUPT = "corrupt"  # not tried again anywhere: the bytes are wrong


# Why a version is refused that an operator went back from.
ROLLED_BACK = "rolled back by an operator"


class LoadFailed(Exception):
    """No version came of a load; `failure` says what follows."""

    def __init__(self, failure: Failure, reason: str) -> None:
        super().__init__(reason)
        self.failure, self.reason = failure, reason


@dataclass(frozen=True, slots=True)
class Target:
    """A version that a channel pointed at in a generation."""

    step: int
    hash: str
    generation: int

    @property
    def version(self) -> str:
        return f"{self.step}-{self.hash[:8]}"


# ------------------------------------------------------------------------------------ the actions


@dataclass(frozen=True, slots=True)
class Begin:
    """Load it in the background; report `staged`, then `loaded` or `failed`."""

    target: Target


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop loading it; report `failed` with CANCELLED."""

    target: Target


@dataclass(frozen=True, slots=True)
class Swap:
    """Serve it from the next batch on, with `fallback` kept beside it; report `swapped`."""

    target: Target
    fallback: Target | None


@dataclass(frozen=True, slots=True)
class Commit:
    """Probation is over: no fallback any more."""

    target: Target


@dataclass(frozen=True, slots=True)
class Release:
    """Its memory and its lease may go."""

    target: Target


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Tell everybody that its bytes are wrong."""

    target: Target
    reason: str


@dataclass(frozen=True, slots=True)
class Note:
    """One line for the log."""

    event: str
    target: Target
    reason: str = ""


Action = Begin | Cancel | Swap | Commit | Release | Quarantine | Note
