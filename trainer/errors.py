"""Every way in which training stops on purpose, by who must act.

`status` is the process's exit status: 2 the user's input, 1 everything else. Nothing here imports
torch, so that a wrong configuration is said at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


class TrainerError(Exception):
    """Base of everything that this package raises on purpose; the message is for the user."""

    code: ClassVar[str] = "trainer_error"
    status: ClassVar[int] = 1


# ----------------------------------------------------------------------------- the user must act


@dataclass(frozen=True, slots=True)
class Problem:
    """One wrong key: where it was written, which it is, and what to do."""

    origin: str  # a file, an environment variable or an argument
    line: int | None
    key: str
    fix: str

    def __str__(self) -> str:
        place = self.origin if self.line is None else f"{self.origin}:{self.line}"
        return ": ".join(part for part in (place, self.key, self.fix) if part)


class ConfigError(TrainerError):
    """The configuration is wrong; every problem that was found is listed."""

    code, status = "bad_config", 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class BadAddress(TrainerError):
    """An address that the configuration names cannot be listened on."""

    code, status = "bad_address", 2


class BadPlugin(TrainerError):
    """The model's or the data's class does not do what the trainer needs of it."""

    code, status = "bad_plugin", 2


class RunMismatch(TrainerError):
    """The run's folder holds another training than the configuration describes."""

    code, status = "run_mismatch", 2


class RunBusy(TrainerError):
    """Another trainer works in the run's folder."""

    code = "run_busy"


class RunUnwritable(TrainerError):
    """The run's folder cannot be made or written into."""

    code, status = "run_unwritable", 2


class RunUnreadable(TrainerError):
    """The file system does not give the run's bytes; whether they are whole is not known."""

    code = "run_unreadable"


# -------------------------------------------------------------------------- the training failed


class Diverged(TrainerError):
    """The loss or the gradient is no finite number any more; nothing of it was committed."""

    code = "diverged"


class WorkersFailed(TrainerError):
    """A server has no workers left, and starting others does not help."""

    code = "workers_failed"


class StateFailed(TrainerError):
    """The resume state could not be written or read; every rank hears which one failed first."""

    code = "state_failed"

    def __init__(self, rank: int, reason: str) -> None:
        super().__init__(f"the resume state failed on rank {rank}: {reason}")
        self.rank, self.reason = rank, reason


class CommitFailed(TrainerError):
    """A checkpoint was not committed, and the run may not go on (or end) without it."""

    code = "commit_failed"


class GateRefused(TrainerError):
    """A version is not good enough to be published."""

    code = "gate_refused"
