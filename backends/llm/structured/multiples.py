"""Multiples of an integer, as texts: an automaton that keeps the remainder."""

from __future__ import annotations

from backends.llm.errors import BadGrammar
from backends.llm.structured.grammar import Chars, Either, Form, Machine, Series, Text

# More states, or more texts, would hold up others.
MAX_FACTOR, MAX_LISTED = 100, 1_000
DIGITS = 15


def multiples(factor: int, low: int | None, high: int | None) -> Form:
    """Those from `low` to `high`, of 15 digits at most. Raises BadGrammar for none, and where
    their number is neither small nor everything above or below 0."""
    far = 10**DIGITS
    least = -far + 1 if low is None else max(low, -far + 1)
    most = far - 1 if high is None else min(high, far - 1)
    found = range(-(-least // factor) * factor, most + 1, factor)
    if not found:
        raise BadGrammar(f"there is no multiple of {factor} from {low} to {high}")
    if len(found) <= MAX_LISTED:
        return Either(tuple(Text(str(number)) for number in found))
    if factor > MAX_FACTOR:
        raise BadGrammar(f"supported up to {MAX_FACTOR}, or for {MAX_LISTED} numbers in bounds")
    if least not in (-far + 1, 0, 1) or most not in (-1, 0, far - 1):
        raise BadGrammar(f"with bounds other than 0, supported for {MAX_LISTED} numbers at most")
    forms: list[Form] = [Text("0")] if least <= 0 <= most else []
    if most > 0:
        forms.append(_positive(factor))
    if least < 0:
        forms.append(Series((Text("-"), _positive(factor))))
    return Either(tuple(forms))


def _positive(factor: int) -> Machine:
    """States: the remainder of what was read, by how many digits that were; 0 is the start."""

    def moves(remainder: int, first: int, read: int) -> tuple[tuple[Form, int], ...]:
        return tuple(
            (
                Chars(((0x30 + digit, 0x30 + digit),)),
                1 + read * factor + (10 * remainder + digit) % factor,
            )
            for digit in range(first, 10)
        )

    states = [moves(0, 1, 0)]
    for read in range(1, DIGITS + 1):
        last = read == DIGITS
        states += [() if last else moves(rest, 0, read) for rest in range(factor)]
    return Machine(tuple(states), frozenset(range(1, len(states), factor)))
