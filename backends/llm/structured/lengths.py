"""Texts of a form that have a given number of characters: a pattern beside minLength, maxLength.

Pure; forms are those of regular expressions. Exact where that stays small. Invariant: what comes
out has only texts of the form, and only of such a length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from backends.llm.errors import BadGrammar
from backends.llm.structured.grammar import Chars, Either, Form, Machine, Series, Text, Times

# Beyond that, an exact answer would hold up others.
MAX_STATES = 4_000


def sized(form: Form, least: int, most: int | None) -> Form:
    """Raises BadGrammar where there are none, or they cannot be told in few states."""
    low, high = span(form)
    if (most is not None and low > most) or (high is not None and high < least):
        raise BadGrammar(f"no text with so many characters: it has {low} to {high or 'any number'}")
    if fits(form, least, most):
        return form
    direct = _direct(form, least, most)
    if direct is not None:
        return direct
    try:
        return _product(form, least, most)
    except _TooManyStates:
        pass
    narrowed = None if most is None else _shared(form, least, most)
    if narrowed is not None:
        return narrowed
    raise BadGrammar("too large together with minLength or maxLength")


def fits(form: Form, least: int, most: int | None) -> bool:
    low, high = span(form)
    return low >= least and (most is None or (high is not None and high <= most))


def span(form: Form) -> tuple[int, int | None]:
    """The fewest and the most characters that a text of the form has; None: any number."""
    match form:
        case Text(text):
            return len(text), len(text)
        case Chars():
            return 1, 1
        case Series(parts):
            spans = [span(part) for part in parts]
            tops = [high for _, high in spans if high is not None]
            return sum(low for low, _ in spans), sum(tops) if len(tops) == len(spans) else None
        case Either(parts):
            spans = [span(part) for part in parts] or [(0, 0)]
            tops = [high for _, high in spans if high is not None]
            return min(low for low, _ in spans), max(tops) if len(tops) == len(spans) else None
        case Times(part, least, most, None):
            low, high = span(part)
            if most is None or high is None:
                return low * least, 0 if high == 0 or most == 0 else None
            return low * least, high * most
    raise AssertionError(f"a regex has no {form}")


def _direct(form: Form, least: int, most: int | None) -> Form | None:
    """Where only the number of one kind of character varies."""
    parts = list(form.parts) if isinstance(form, Series) else [form]
    spans = [span(part) for part in parts]
    varying = [at for at, (low, high) in enumerate(spans) if low != high]
    if len(varying) != 1:
        return None
    part = parts[varying[0]]
    if not isinstance(part, Times) or span(part.part) != (1, 1):
        return None
    fixed = sum(low for low, high in spans if low == high)
    tops = [top for top in (part.most, None if most is None else most - fixed) if top is not None]
    least, top = max(part.least, least - fixed), min(tops, default=None)
    parts[varying[0]] = replace(part, least=least, most=top)
    return Series(tuple(parts))


def _shared(form: Form, least: int, most: int) -> Form | None:
    """Not all that there are: repetitions end so early that nothing gets too long."""
    more = most
    while True:
        narrowed = _capped(form, more)
        if fits(narrowed, least, most):
            return narrowed
        if more == 0:
            return None
        more = more * 3 // 4


def _capped(form: Form, more: int) -> Form:
    """With about so many characters, at most, beyond the fewest in each repetition."""
    match form:
        case Series(parts):
            return Series(tuple(_capped(part, more) for part in parts))
        case Either(parts):
            return Either(tuple(_capped(part, more) for part in parts))
        case Times(part, least, most, _):
            inner = _capped(part, more if most == 1 else math.isqrt(more))
            top = span(inner)[1] or 1
            copies = max(1, least + more // top)
            return Times(inner, least, copies if most is None else min(most, copies))
    return form


class _TooManyStates(Exception):
    pass


def _product(form: Form, least: int, most: int | None) -> Machine:
    """States: a node of the form's automaton, and how many characters came before it (where there
    is no `most`, as far as `least` asks)."""
    net = _Net()
    net.add(form, 0, 1)
    short, after = net.shortest(), [net.closed(node) for node in range(len(net.edges))]
    numbers: dict[tuple[int, int], int] = {(0, 0): 0}
    waiting, moves, ends = [(0, 0)], [list[tuple[Form, int]]()], set[int]()
    while waiting:
        node, count = waiting.pop()
        number = numbers[node, count]
        if 1 in after[node] and count >= least:
            ends.add(number)
        following = count + 1 if most is not None else min(count + 1, least)
        for from_ in after[node]:
            for chars, to in net.edges[from_]:
                if most is not None and following + short[to] > most:
                    continue
                state = (to, following)
                if state not in numbers:
                    if len(numbers) >= MAX_STATES:
                        raise _TooManyStates
                    numbers[state] = len(numbers)
                    moves.append([])
                    waiting.append(state)
                moves[number].append((chars, numbers[state]))
    return Machine(tuple(map(tuple, moves)), frozenset(ends))


@dataclass(slots=True)
class _Net:
    """A nondeterministic automaton over characters: 0 starts and 1 ends."""

    edges: list[list[tuple[Chars, int]]]
    free: list[list[int]]

    def __init__(self) -> None:
        self.edges, self.free = [[], []], [[], []]

    def closed(self, node: int) -> set[int]:
        """With what is reached without a character."""
        waiting, seen = [node], {node}
        while waiting:
            for after in self.free[waiting.pop()]:
                if after not in seen:
                    seen.add(after)
                    waiting.append(after)
        return seen

    def shortest(self) -> list[int]:
        """How many characters there are at least from each node to the end."""
        far = 1 << 30
        least = [far] * len(self.edges)
        least[1] = 0
        changed = True
        while changed:
            changed = False
            for node in reversed(range(len(self.edges))):
                ways = [least[after] for after in self.free[node]]
                ways += [least[after] + 1 for _, after in self.edges[node]]
                best = min(ways, default=far)
                if best < least[node]:
                    least[node], changed = best, True
        return least

    def _node(self) -> int:
        if len(self.edges) >= MAX_STATES:
            raise _TooManyStates
        self.edges.append([])
        self.free.append([])
        return len(self.edges) - 1

    def add(self, form: Form, start: int, end: int) -> None:
        match form:
            case Text(text):
                letters = tuple(Chars(((ord(sign), ord(sign)),)) for sign in text)
                self.add(Series(letters), start, end)
            case Chars():
                self.edges[start].append((form, end))
            case Series(parts):
                for part in parts:
                    middle = self._node()
                    self.add(part, start, middle)
                    start = middle
                self.free[start].append(end)
            case Either(parts):
                for part in parts:
                    self.add(part, start, end)
            case Times(part, least, most, _):
                for number in range(least if most is None else most):
                    if number >= least:
                        self.free[start].append(end)
                    middle = self._node()
                    self.add(part, start, middle)
                    start = middle
                if most is None:
                    loop = self._node()
                    again = self._node()
                    self.free[start].append(loop)
                    self.add(part, loop, again)
                    self.free[again].append(loop)
                    start = loop
                self.free[start].append(end)
            case _:
                raise AssertionError(f"a regex has no {form}")
