"""Who serves and who is in reserve, by rank within a table."""

from __future__ import annotations

from typing import NamedTuple

from gateway.policy.ranks import in_turn, preferred


class Member(NamedTuple):
    table: str
    rank: int
    number: int = 0


def test_ranks_count_within_their_table():
    static = Member("static", 0)
    first, again, second = Member("srv", 1), Member("srv", 1, 1), Member("srv", 2)
    serving, reserve = in_turn([second, first, static, again])
    assert serving == [first, static, again] and reserve == [second]
    assert in_turn(reserve) == ([second], [])
    assert in_turn([]) == ([], [])


def test_what_is_behind_those_that_serve_does_not_count():
    members = [Member("srv", rank, number) for rank in (0, 1, 2) for number in (0, 1)]
    assert preferred(members, members[:1]) == 2
    assert preferred(members, members[2:4]) == 4  # those of the first rank are all missing
    assert preferred(members, []) == 6
