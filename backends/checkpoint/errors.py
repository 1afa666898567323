"""Errors of the checkpoint seam: what went wrong, where, and who must act.

Each has a `code` for machines and says whether trying again can help. Nothing here touches a file.
"""

from __future__ import annotations


class CheckpointError(Exception):
    """Base of everything that this package raises on purpose."""

    code = "checkpoint_error"
    retryable = False


class BadRecord(CheckpointError):
    """A manifest or another small record that is malformed, absurd, unsafe or was edited."""

    code = "bad_record"


class NoSuchStep(CheckpointError):
    """The step is not (or no longer) committed in this run."""

    code = "no_such_step"


class Incomplete(CheckpointError):
    """A file of a committed step is missing or has the wrong size."""

    code = "incomplete"

    def __init__(self, path: str, expected: str, found: str) -> None:
        super().__init__(f"{path}: expected {expected}, found {found}")
        self.path, self.expected, self.found = path, expected, found


class Corrupt(CheckpointError):
    """Bytes that are not the ones committed, also after a second reading past the page cache."""

    code = "corrupt"

    def __init__(self, path: str, expected: str, found: str) -> None:
        super().__init__(f"{path}: expected {expected}, found {found}")
        self.path, self.expected, self.found = path, expected, found


class Unreadable(CheckpointError):
    """The file system refused to read; nothing is known about the bytes."""

    code = "unreadable"
    retryable = True


class Cancelled(CheckpointError):
    """The caller's `cancelled()` said so; nothing of what was read may be used."""

    code = "cancelled"


class CommitAborted(CheckpointError):
    """The step was not committed, on any rank; `rank` and `reason` say why. Nothing is left."""

    code = "commit_aborted"

    def __init__(self, rank: int, reason: str) -> None:
        super().__init__(f"rank {rank}: {reason}")
        self.rank, self.reason = rank, reason


class StepExists(CheckpointError):
    """The step is committed already and whole; committed steps are never written again."""

    code = "step_exists"


class Busy(CheckpointError):
    """Another live process holds what is needed."""

    code = "busy"
    retryable = True


class Quarantined(CheckpointError):
    """The version is in quarantine: it may be neither published nor loaded."""

    code = "quarantined"


class ChannelMoved(CheckpointError):
    """The channel is not at the generation that the caller expected."""

    code = "channel_moved"


class NoRollback(CheckpointError):
    """The channel has no earlier version that is whole and not in quarantine."""

    code = "no_rollback"
