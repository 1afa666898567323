"""A grammar as a machine over bytes: a nondeterministic automaton whose edges may call rules.

Owns the translation and the depth that each node still needs. Invariant: `need[node]` is the
least depth of calls with which a text can go on from there to its rule's end, so a machine that
respects a limit on depth never enters what it could not leave.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from backends.llm.errors import BadGrammar
from backends.llm.structured.grammar import (
    NOTHING,
    Chars,
    Either,
    Form,
    Grammar,
    Listed,
    Machine,
    Rule,
    Series,
    Text,
    Times,
)
from backends.llm.structured.utf8 import utf8_ranges

# A grammar beyond that is a mistake or an attack: building it would hold up others.
MAX_NODES = 20_000
NEVER = 1 << 30
# Copies of a form that together take more are calls of a rule instead, which is slower to follow.
MAX_COPIES = 1_000


class Program:
    """Node 0 starts the text and node 1 ends it; rules have a first and a last node of their own.

    `edges[node]`: (low, high, next) for a byte from low to high; `free[node]`: nodes that are
    reached without one; `calls[node]`: (rule's first node, node after its return).
    """

    def __init__(self, grammar: Grammar) -> None:
        """Raises BadGrammar when it is too large or nothing has its form."""
        self.edges: list[list[tuple[int, int, int]]] = []
        self.free: list[list[int]] = []
        self.calls: list[list[tuple[int, int]]] = []
        self.ends: set[int] = set()
        self._rules: dict[str, int] = {}
        # Rules for what is repeated too often to be copied.
        self._own: dict[str, Form] = {}
        self._to_build: list[tuple[Form, int, int]] = []
        self._grammar = grammar
        start, end = self._node(), self._node()
        self._to_build.append((grammar.start, start, end))
        self.ends.add(end)
        while self._to_build:
            self._build(*self._to_build.pop())
        self.need = self._needs()
        if self.need[start] >= NEVER:
            raise BadGrammar("no text has the form that is asked for")

    def _node(self) -> int:
        if len(self.edges) >= MAX_NODES:
            raise BadGrammar(f"the form is too large: it takes more than {MAX_NODES} nodes")
        self.edges.append([])
        self.free.append([])
        self.calls.append([])
        return len(self.edges) - 1

    def _rule(self, name: str) -> int:
        if name not in self._rules:
            first, last = self._node(), self._node()
            self._rules[name] = first
            self.ends.add(last)
            form = self._own[name] if name in self._own else self._grammar.rules[name]
            self._to_build.append((form, first, last))
        return self._rules[name]

    def _to_copy(self, form: Form, copies: int) -> Form:
        """The form, or a rule for it, where it is to be built so often."""
        size = _size(form)
        if copies * size <= MAX_COPIES or size < 3:
            return form
        name = f"copied {len(self._own)}"
        self._own[name] = form
        return Rule(name)

    def _build(self, form: Form, start: int, end: int) -> None:
        match form:
            case Text(text):
                self._bytes([(byte, byte) for byte in text.encode()], start, end)
            case Chars(ranges):
                for low, high in ranges:
                    for sequence in utf8_ranges(low, high):
                        self._bytes(list(sequence), start, end)
            case Series(parts):
                for part in parts:
                    middle = self._node()
                    self._build(part, start, middle)
                    start = middle
                self.free[start].append(end)
            case Either(parts):
                for part in parts:
                    self._build(part, start, end)
            case Times():
                self._times(form, start, end)
            case Listed(parts, between):
                self._listed(parts, between, start, end)
            case Machine():
                self._machine(form, start, end)
            case Rule(name):
                self.calls[start].append((self._rule(name), end))

    def _bytes(self, sequence: list[tuple[int, int]], start: int, end: int) -> None:
        for place, (low, high) in enumerate(sequence):
            after = end if place == len(sequence) - 1 else self._node()
            self.edges[start].append((low, high, after))
            start = after
        if not sequence:
            self.free[start].append(end)

    def _times(self, form: Times, start: int, end: int) -> None:
        least, most = form.least, form.most
        at, copies = start, least if most is None else most
        part = self._to_copy(form.part, copies)
        between = self._to_copy(form.between or NOTHING, copies)
        for number in range(copies):
            if number >= least:
                self.free[at].append(end)
            at = self._one_more(part, between, at, first=number == 0)
        self.free[at].append(end)
        if most is None:
            # From here on it goes round: a node of its own, so that nothing else does.
            loop = self._node()
            self.free[at].append(loop)
            after = self._one_more(part, between, loop, first=least == 0)
            if least == 0 and form.between is not None:
                again = self._one_more(part, between, after, first=False)
                self.free[again].append(after)
                self.free[after].append(end)
            else:
                self.free[after].append(loop)
                self.free[loop].append(end)

    def _one_more(self, part: Form, between: Form, at: int, *, first: bool) -> int:
        after = self._node()
        if first or between == NOTHING:
            self._build(part, at, after)
        else:
            middle = self._node()
            self._build(between, at, middle)
            self._build(part, middle, after)
        return after

    def _machine(self, form: Machine, start: int, end: int) -> None:
        nodes = [self._node() for _ in form.moves]
        self.free[start].append(nodes[0])
        number = Counter(part for moves in form.moves for part, _ in moves)
        copies = {part: self._to_copy(part, count) for part, count in number.items()}
        for node, moves in zip(nodes, form.moves, strict=True):
            for part, after in moves:
                self._build(copies[part], node, nodes[after])
        for state in form.ends:
            self.free[nodes[state]].append(end)

    def _listed(
        self, parts: Sequence[tuple[Form, bool]], between: Form, start: int, end: int
    ) -> None:
        """Two tracks: `none` while nothing was written yet, `some` afterwards."""
        none, some = start, self._node()
        for part, required in parts:
            next_none, next_some = self._node(), self._node()
            entry = self._node()
            self.free[none].append(entry)
            self._build(between, some, entry)
            self._build(part, entry, next_some)
            if not required:
                self.free[none].append(next_none)
                self.free[some].append(next_some)
            none, some = next_none, next_some
        self.free[none].append(end)
        self.free[some].append(end)

    def _needs(self) -> list[int]:
        count = len(self.edges)
        need = [NEVER] * count
        for end in self.ends:
            need[end] = 0
        # Who is to be looked at again when a node's need falls.
        before: list[list[int]] = [[] for _ in range(count)]
        for node in range(count):
            for _, _, after in self.edges[node]:
                before[after].append(node)
            for after in self.free[node]:
                before[after].append(node)
            for first, after in self.calls[node]:
                before[after].append(node)
                before[first].append(node)
        waiting = [node for end in self.ends for node in before[end]]
        while waiting:
            node = waiting.pop()
            least = need[node]
            for _, _, after in self.edges[node]:
                least = min(least, need[after])
            for after in self.free[node]:
                least = min(least, need[after])
            for first, after in self.calls[node]:
                least = min(least, max(need[first] + 1, need[after]))
            if least < need[node]:
                need[node] = least
                waiting += before[node]
        return need


def _size(form: Form) -> int:
    """About how many nodes a copy takes."""
    match form:
        case Text(text):
            return len(text)
        case Chars(ranges):
            return 1 + 8 * sum(high >= 0x80 for _, high in ranges)
        case Series(parts) | Either(parts):
            return sum(map(_size, parts)) + len(parts)
        case Times(part, least, most, between):
            one = _size(part) + (_size(between) if between is not None else 0)
            copies = least if most is None else most
            # Of many copies, each is a call.
            return copies * (one if copies * one <= MAX_COPIES else 4) + one + 2
        case Listed(parts, between):
            return sum(_size(part) + _size(between) + 3 for part, _ in parts)
        case Machine(moves, _):
            return sum(len(own) + 1 for own in moves)
        case Rule():
            return 1
