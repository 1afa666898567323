"""Answers' heads that an upstream repeats, remembered by their bytes with what was read from them.

Equal bytes cannot mean different things, so a head that was read once in full need not be read
again. Only heads of plain, whole, good answers are kept: a length, no other framing, a connection
that stays. Invariant: the table is bounded, and heads that do not repeat never enter it.
"""

from __future__ import annotations

from typing import NamedTuple

from gateway.relay.head import AnswerHead, read_answer

HEADS, HEAD_BYTES = 512, 2048


class Known(NamedTuple):
    status: int
    length: int
    answer: AnswerHead


class HeadMemo:
    """`table` may be asked directly; `note` fills it. One for each upstream."""

    __slots__ = ("_seen", "table")

    def __init__(self) -> None:
        self.table: dict[bytes, Known] = {}
        self._seen = [0] * HEADS  # hashes of heads that came once

    def note(self, head: bytes, rest: int, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """The first head of an answer that is complete, on a connection that stays; `rest` bytes
        came behind it. Unless they are its body alone, the fields may be those of another head."""
        mark = hash(head)
        slot = mark % HEADS
        if self._seen[slot] != mark:
            self._seen[slot] = mark
            return
        if len(head) > HEAD_BYTES or not 200 <= status < 400 or status in (204, 304):
            return
        if any(name == b"transfer-encoding" for name, _ in headers):
            return
        answer = read_answer(headers)
        if answer.length != rest or answer.events:
            return
        if len(self.table) >= HEADS:
            self.table.clear()
        self.table[head] = Known(status, rest, answer)
