"""Numbers between two bounds, as texts: which digits may stand where."""

from __future__ import annotations

from typing import NamedTuple

from backends.llm.errors import BadGrammar
from backends.llm.structured.grammar import Chars, Either, Form, Series, Text, Times

# So many digits, every reader of JSON takes.
MOST = 10**16 - 1
# With fractions of so many digits and wholes below this, nothing is rounded to a bound when read.
FRACTION, WIDE = 5, 10**9
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


class Bound(NamedTuple):
    """A whole number; `open`: it is outside itself."""

    value: int
    open: bool = False


def numbers(low: Bound | None, high: Bound | None) -> Form:
    """Decimals from `low` to `high`, fractions included; None: as far as a fraction is told from a
    whole, and whole numbers beyond. Raises BadGrammar for none."""
    least, most = low or Bound(-WIDE), high or Bound(WIDE)
    forms: list[Form] = []
    if least.value < 0:
        top = Bound(0, True) if most.value >= 0 else Bound(-most.value, most.open)
        forms += [
            Series((Text("-"), form)) for form in _decimals(top, Bound(-least.value, least.open))
        ]
    if most.value >= 0:
        forms += _decimals(Bound(0) if least.value < 0 else least, most)
    if high is None:
        forms.append(integers(max(WIDE, least.value) + 1, None))
    if low is None:
        forms.append(integers(None, min(-WIDE, most.value) - 1))
    if not forms:
        raise BadGrammar(f"there is no number from {least.value} to {most.value}")
    return Either(tuple(forms))


def _decimals(low: Bound, high: Bound) -> list[Form]:
    """Those of 0 and more."""
    begin = low.value + low.open
    forms: list[Form] = []
    if low.open and low.value < high.value:
        forms.append(Series((Text(str(low.value)), _PART)))
    if begin < high.value:
        forms.append(Series((_natural(begin, high.value - 1), Times(_ANY_PART, 0, 1))))
    if begin <= high.value and not high.open:
        forms.append(Text(str(high.value)))
    return forms


_ANY_PART = Series((Text("."), Times(DIGIT, 1, FRACTION)))
# Not zero.
_PART = Series((Text("."), Times(DIGIT, 0, FRACTION - 1), Chars.of([(0x31, 0x39)])))


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
