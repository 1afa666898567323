"""A program made deterministic, state by state as they are met.

Owns the table of states and transitions, bounded: when it is full it begins anew. Used by one
thread at a time. Invariant: every state in the table can reach the end of the text.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from backends.llm.structured.program import Program

# Deeper JSON than that is no answer to anything.
MAX_DEPTH = 64
MAX_STATES = 16_384
MAX_STACKS = 1 << 18
# No text goes on from there; its row leads to itself.
DEAD, START = 0, 1

# A node, and where the rules that it is in return to: a stack, by its number.
Place = tuple[int, int]


class Automaton:
    """`epoch` counts how often the table began anew."""

    def __init__(self, program: Program) -> None:
        self._program = program
        # stack → (node to return to, stack below, depth); 0 is empty
        self._stacks: list[tuple[int, int, int]] = [(-1, -1, 0)]
        self._stack_ids: dict[tuple[int, int], int] = {}
        self.epoch = 0
        self._begin()

    def _begin(self) -> None:
        self.table: NDArray[np.int32] = np.full((64, 256), DEAD, np.int32)
        self._known = bytearray(64)
        self._known[DEAD] = 1
        self._states: list[frozenset[Place]] = [frozenset()]
        self._ids: dict[frozenset[Place], int] = {frozenset(): DEAD}
        self._after: dict[frozenset[Place], int] = {}
        self._id(self._closed([(0, 0)]))

    def places(self, state: int) -> frozenset[Place]:
        """What the state is, whatever its number."""
        return self._states[state]

    def find(self, places: frozenset[Place]) -> int:
        """Its number in the present table."""
        return self._id(places)

    def tidy(self) -> None:
        """Between two uses: begin anew when the table is full."""
        if len(self._states) > MAX_STATES:
            self.epoch += 1
            self._begin()

    @property
    def worn(self) -> bool:
        """It has seen so many depths that another one should take its place. Stacks are kept for
        good, because places that somebody holds name them."""
        return len(self._stacks) > MAX_STACKS

    def final(self, state: int) -> bool:
        """The text may end here."""
        return (1, 0) in self._states[state]

    def over(self, state: int) -> bool:
        """The text can only end here."""
        return self.final(state) and bool((self.row(state) == DEAD).all())

    def row(self, state: int) -> NDArray[np.int32]:
        """[256] the state after each byte."""
        if not self._known[state]:
            self._fill(state)
        row: NDArray[np.int32] = self.table[state]
        return row

    def learn(self, states: NDArray[np.intp]) -> None:
        """Fill the rows of all of them."""
        for state in states:
            if not self._known[state]:
                self._fill(int(state))

    def step(self, state: int, data: bytes) -> int:
        for byte in data:
            if state == DEAD:
                break
            state = int(self.row(state)[byte])
        return state

    def _fill(self, state: int) -> None:
        moves = [
            (low, high, (after, stack))
            for node, stack in self._states[state]
            for low, high, after in self._program.edges[node]
            if self._alive(after, stack)
        ]
        bounds = sorted({low for low, _, _ in moves} | {high + 1 for _, high, _ in moves})
        for low, high in pairwise(bounds):
            reached = frozenset(place for a, b, place in moves if a <= low and high <= b + 1)
            if reached:
                after = self._after.get(reached)
                if after is None:
                    after = self._after[reached] = self._id(self._closed(list(reached)))
                # By index each time: the table may have grown.
                self.table[state, low:high] = after
        self._known[state] = 1

    def _id(self, places: frozenset[Place]) -> int:
        id = self._ids.get(places)
        if id is None:
            id = self._ids[places] = len(self._states)
            self._states.append(places)
            if id >= len(self.table):
                more = np.full_like(self.table, DEAD)
                self.table = np.concatenate([self.table, more])
                self._known += bytes(len(self._known))
        return id

    def _alive(self, node: int, stack: int) -> bool:
        return self._stacks[stack][2] + self._program.need[node] <= MAX_DEPTH

    def _closed(self, places: list[Place]) -> frozenset[Place]:
        """Those, and all that are reached without a byte; only places from which a byte leads on,
        and the end, are kept."""
        program, seen = self._program, set(places)
        kept: set[Place] = set()
        while places:
            node, stack = places.pop()
            if program.edges[node] or node == 1:
                kept.add((node, stack))
            reached = [(after, stack) for after in program.free[node]]
            for first, after in program.calls[node]:
                if self._alive(after, stack) and self._stacks[stack][2] < MAX_DEPTH:
                    reached.append((first, self._push(after, stack)))
            if node in program.ends and stack:
                back, below, _ = self._stacks[stack]
                reached.append((back, below))
            for place in reached:
                if place not in seen and self._alive(*place):
                    seen.add(place)
                    places.append(place)
        return frozenset(kept)

    def _push(self, node: int, stack: int) -> int:
        key = (node, stack)
        id = self._stack_ids.get(key)
        if id is None:
            id = self._stack_ids[key] = len(self._stacks)
            self._stacks.append((node, stack, self._stacks[stack][2] + 1))
        return id
