"""Ranks of replicas: of one table of the configuration, the lowest that can serve does.

Pure. The ranks behind it are in reserve, as SRV records of higher priority values are (RFC 2782):
they get nothing, however loaded the first are, until none of those can be used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar


class Ranked(Protocol):
    """`table`: of the configuration, that it comes from; ranks count within it."""

    @property
    def table(self) -> str: ...
    @property
    def rank(self) -> int: ...


R = TypeVar("R", bound=Ranked)


def in_turn(ready: Iterable[R]) -> tuple[list[R], list[R]]:
    """Those of the lowest rank of each table, and the rest."""
    ready = list(ready)
    lowest: dict[str, int] = {}
    for each in ready:
        lowest[each.table] = min(each.rank, lowest.get(each.table, each.rank))
    first = [each for each in ready if each.rank == lowest[each.table]]
    return first, [each for each in ready if each.rank > lowest[each.table]]


def preferred(all_of_them: Iterable[R], serving: Sequence[R]) -> int:
    """How many there are of the ranks up to those that serve, whatever their state."""
    reached = {each.table: each.rank for each in serving}
    return sum(each.rank <= reached.get(each.table, each.rank) for each in all_of_them)
