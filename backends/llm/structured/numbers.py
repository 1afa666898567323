"""Integers between two bounds, as texts: which digits may stand where."""

from __future__ import annotations

from backends.llm.errors import BadGrammar
from backends.llm.structured.grammar import Chars, Either, Form, Series, Text, Times

# So many digits, every reader of JSON takes.
MOST = 10**16 - 1
DIGIT = Chars.of([(0x30, 0x39)])


def integers(low: int | None, high: int | None) -> Form:
    """Those from `low` to `high`; None: as far as numbers go. Raises BadGrammar for none."""
    low = -MOST if low is None else low
    high = MOST if high is None else high
    if low > high:
        raise BadGrammar(f"there is no integer from {low} to {high}")
    forms: list[Form] = []
    if low < 0:
        forms.append(Series((Text("-"), _natural(max(1, -high), -low))))
    if high >= 0:
        forms.append(_natural(max(0, low), high))
    return Either(tuple(forms))


def _natural(low: int, high: int) -> Form:
    """Numbers of each length apart: with as many digits, order is that of the texts."""
    forms: list[Form] = []
    for size in range(len(str(low)), len(str(high)) + 1):
        least = max(low, 10 ** (size - 1) if size > 1 else 0)
        forms.append(_same_length(str(least), str(min(high, 10**size - 1))))
    return Either(tuple(forms))


def _same_length(low: str, high: str) -> Form:
    if not low:
        return Text("")
    first, last, rest = low[0], high[0], len(low) - 1
    if low[1:] == "0" * rest and high[1:] == "9" * rest:
        return Series((_digits(first, last), Times(DIGIT, rest, rest)))
    if first == last:
        return Series((Text(first), _same_length(low[1:], high[1:])))
    forms: list[Form] = [
        Series((Text(first), _same_length(low[1:], "9" * rest))),
        Series((Text(last), _same_length("0" * rest, high[1:]))),
    ]
    if int(last) - int(first) > 1:
        between = _digits(str(int(first) + 1), str(int(last) - 1))
        forms.append(Series((between, Times(DIGIT, rest, rest))))
    return Either(tuple(forms))


def _digits(low: str, high: str) -> Chars:
    return Chars.of([(ord(low), ord(high))])
