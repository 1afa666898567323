"""Names of versions: in full (step and hash, `300-1a2b3c4d`) and by step alone (`300`).

Triton's versions are whole numbers, and its tools read them as such. So a step is enough to name a
version where only one has it, and statistics are given by step.
"""

from __future__ import annotations

from collections.abc import Sequence


def find(said: str, versions: Sequence[str]) -> str | None:
    """The version that is meant: by its name, or by a step that only one of them has."""
    if said in versions:
        return said
    same = [version for version in versions if version.partition("-")[0] == said]
    return same[0] if len(same) == 1 else None


def steps(versions: Sequence[str]) -> list[str]:
    """What to call each: its step; in full where that is no number or an earlier one has it."""
    named: list[str] = []
    for version in versions:
        step = version.partition("-")[0]
        named.append(step if step.isdigit() and step not in named else version)
    return named
