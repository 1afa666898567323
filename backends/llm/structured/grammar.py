"""Grammars as data: forms that texts may have, and rules by which a form contains itself.

Owns the types and nothing else. A form speaks of characters; its bytes are UTF-8.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

LAST = 0x10FFFF
# No UTF-8 text has them.
SURROGATES = (0xD800, 0xDFFF)


@dataclass(frozen=True, slots=True)
class Text:
    """This text."""

    text: str


@dataclass(frozen=True, slots=True)
class Chars:
    """One character out of these ranges of code points, which are sorted and do not overlap."""

    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, ranges: Iterable[tuple[int, int]]) -> Chars:
        merged: list[tuple[int, int]] = []
        for low, high in sorted(ranges):
            if merged and low <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
            else:
                merged.append((low, high))
        return cls(tuple(merged))

    def others(self) -> Chars:
        """Every character that is not one of these."""
        ranges, at = [], 0
        for low, high in self.ranges:
            if low > at:
                ranges.append((at, low - 1))
            at = high + 1
        if at <= LAST:
            ranges.append((at, LAST))
        return Chars(tuple(ranges))

    def without(self, codes: Iterable[int]) -> Chars:
        gone = Chars.of((code, code) for code in codes)
        return Chars.of([*gone.ranges, *self.others().ranges]).others()

    def beside(self, more: Chars) -> Chars:
        """These and those."""
        return Chars.of([*self.ranges, *more.ranges])

    def has(self, code: int) -> bool:
        return any(low <= code <= high for low, high in self.ranges)


@dataclass(frozen=True, slots=True)
class Series:
    """These, one after the other."""

    parts: Sequence[Form]


@dataclass(frozen=True, slots=True)
class Either:
    """One of these; none is a form that nothing has."""

    parts: Sequence[Form]


@dataclass(frozen=True, slots=True)
class Times:
    """At least `least` and at most `most` (None: any number) of `part`, `between` in between."""

    part: Form
    least: int = 0
    most: int | None = None
    between: Form | None = None


@dataclass(frozen=True, slots=True)
class Listed:
    """Parts in this order, those that are not required may be left out; `between` in between."""

    parts: Sequence[tuple[Form, bool]]
    between: Form


@dataclass(frozen=True, slots=True)
class Machine:
    """An automaton that begins in state 0. `moves[state]`: a form and the state after it; `ends`:
    states in which the text may end."""

    moves: tuple[tuple[tuple[Form, int], ...], ...]
    ends: frozenset[int]


@dataclass(frozen=True, slots=True)
class Rule:
    """What `Grammar.rules` says of that name."""

    name: str


Form = Text | Chars | Series | Either | Times | Listed | Machine | Rule
NOTHING = Text("")


@dataclass(frozen=True, slots=True)
class Grammar:
    start: Form
    rules: Mapping[str, Form]


def letters(text: str) -> Chars:
    return Chars.of((ord(letter), ord(letter)) for letter in text)


def maybe(form: Form) -> Form:
    return Times(form, 0, 1)
