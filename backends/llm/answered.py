"""What an answer says of the version that gave it, as a probation compares versions.

Pure. Invariant: an answer that says nothing of its version's speed is never compared by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from backends.llm.calls import Ended

# Answers with fewer tokens say nothing of the time that one takes.
LEAST_TOKENS = 8


class Answered(NamedTuple):
    """What a version did for one call: see `backends.probation.Ran`. Rows are calls that ran beside
    it, seconds are those of a token."""

    version: str
    rows: int
    seconds: float
    requests: int
    failed: int
    regressed: str = ""


def answered(ended: Ended, beside: int) -> Answered | None:
    """`beside`: the calls that ran then, but for this one. None if it says nothing."""
    failed = int(ended.failed)
    if ended.tokens >= LEAST_TOKENS:
        seconds = ended.seconds / (ended.tokens - 1)
        return Answered(ended.version, beside + 1, seconds, 1, failed)
    # Without a time, it stands in a class of its own.
    return Answered(ended.version, 0, 0.0, 1, failed) if failed else None
