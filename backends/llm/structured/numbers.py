"""Numbers between two bounds, as texts: which digits may stand where."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import NamedTuple

from backends.llm.errors import BadGrammar
from backends.llm.structured.grammar import Chars, Either, Form, Series, Text, Times

# So many digits, every reader of JSON takes.
MOST = 10**16 - 1
# With fractions of so many digits and wholes below this, nothing is rounded to a bound when read.
FRACTION, WIDE = 5, 10**9
DIGIT = Chars.of([(0x30, 0x39)])


def integers(low: int | None, high: int | None) -> Form:
    """Those from `low` to `high`, as far as numbers go. Raises BadGrammar for none."""
    low = -MOST if low is None else max(low, -MOST)
    high = MOST if high is None else min(high, MOST)
    if low > high:
        raise BadGrammar(f"there is no integer from {low} to {high}")
    forms: list[Form] = []
    if low < 0:
        forms.append(Series((Text("-"), _natural(max(1, -high), -low))))
    if high >= 0:
        forms.append(_natural(max(0, low), high))
    return Either(tuple(forms))


class Bound(NamedTuple):
    """`open`: it is outside itself."""

    value: Decimal
    open: bool = False

    def negated(self) -> Bound:
        return Bound(-self.value, self.open)


NONE = Bound(Decimal(0))


def numbers(low: Bound | None, high: Bound | None) -> Form:
    """Decimals from `low` to `high`, fractions included where a fraction is told from a whole, and
    whole numbers beyond; None: as far as numbers go. Raises BadGrammar for none."""
    least, most = low or Bound(Decimal(-MOST)), high or Bound(Decimal(MOST))
    forms: list[Form] = []
    if least.value < 0:
        top = most.negated() if most.value < 0 else Bound(Decimal(0), True)
        forms += [Series((Text("-"), form)) for form in _decimals(top, least.negated())]
    if most.value >= 0:
        forms += _decimals(NONE if least.value < 0 else least, most)
    if not forms:
        raise BadGrammar(f"there is no number from {least.value} to {most.value}")
    return Either(tuple(forms))


def _decimals(low: Bound, high: Bound) -> list[Form]:
    """Those of 0 and more, by their units of the last digit of a fraction."""
    unit = 10**FRACTION
    first, last = math.ceil(low.value * unit), math.floor(high.value * unit)
    first += low.open and first == low.value * unit
    last -= high.open and last == high.value * unit
    forms = _fractions(first, min(last, WIDE * unit - 1))
    begin, end = max(-(-first // unit), WIDE), min(last // unit, MOST)
    return [*forms, _natural(begin, end)] if begin <= end else forms


def _fractions(first: int, last: int) -> list[Form]:
    """From so many units to so many."""
    if first > last:
        return []
    unit = 10**FRACTION
    (low, above), (high, below) = divmod(first, unit), divmod(last, unit)
    if low == high:
        return _parts(low, above, below)
    forms: list[Form] = []
    if above:
        forms += _parts(low, above, unit - 1)
        low += 1
    if below < unit - 1:
        forms += _parts(high, 0, below)
        high -= 1
    if low <= high:
        forms.append(Series((_natural(low, high), Times(_ANY_PART, 0, 1))))
    return forms


def _parts(whole: int, least: int, most: int) -> list[Form]:
    """Numbers of that whole, with fractions from `least` to `most` units."""
    forms: list[Form] = [] if least else [Text(str(whole))]
    for size in range(1, FRACTION + 1):
        step = 10 ** (FRACTION - size)
        low, high = -(-least // step), most // step
        if low <= high:
            digits = _same_length(f"{low:0{size}}", f"{high:0{size}}")
            forms.append(Series((Text(f"{whole}."), digits)))
    return forms


_ANY_PART = Series((Text("."), Times(DIGIT, 1, FRACTION)))


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
