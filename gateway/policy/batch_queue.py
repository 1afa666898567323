"""The waiting requests of one key, most urgent first.

Owns order and membership; decides nothing. Parallel lists with a moving head keep the usual cases
(append at the end, take from the front) free of searching and shifting; a discarded item leaves a
hole that is squeezed out once holes are many. Invariant: `order` never falls along the queue.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

_SPARE = 64  # passed or empty places that are tolerated before the lists are squeezed


class KeyQueue(Generic[T]):
    """`order`: lower is sooner, first come first served among equals. `deadline`: absolute."""

    __slots__ = ("_head", "_holes", "deadlines", "items", "key", "order", "rows", "sizes")

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.order: list[float] = []
        self.deadlines: list[float] = []
        self.sizes: list[int] = []
        self.items: list[T | None] = []
        self.rows = 0
        self._head = 0
        self._holes = 0

    def __len__(self) -> int:
        return len(self.items) - self._head - self._holes

    @property
    def urgency(self) -> float:
        """The order of the most urgent item; the queue must not be empty."""
        return self.order[self._head]

    def add(self, item: T, order: float, deadline: float, size: int, *, first: bool) -> None:
        """`first`: ahead of its equals, not behind them."""
        if not self.order or (order >= self.order[-1] and not first):
            at = len(self.order)
        elif first:
            at = bisect_left(self.order, order, self._head)
        else:
            at = bisect_right(self.order, order, self._head)
        self.order.insert(at, order)
        self.deadlines.insert(at, deadline)
        self.sizes.insert(at, size)
        self.items.insert(at, item)
        self.rows += size

    def find(self, item: T, order: float) -> int:
        """The place of a waiting item, -1 when it does not wait here."""
        at = bisect_left(self.order, order, self._head)
        while at < len(self.order) and self.order[at] == order:
            if self.items[at] is item:
                return at
            at += 1
        return -1

    def remove(self, at: int) -> None:
        """Take one out of the middle."""
        self.items[at] = None
        self.rows -= self.sizes[at]
        self._holes += 1
        self._settle()

    def places(self) -> Iterator[int]:
        """Every waiting item's place, most urgent first."""
        items = self.items
        return (at for at in range(self._head, len(items)) if items[at] is not None)

    def take(self, places: list[int]) -> list[T]:
        """Remove and return the items at these places."""
        taken = []
        for at in places:
            item = self.items[at]
            assert item is not None
            taken.append(item)
            self.items[at] = None
            self.rows -= self.sizes[at]
        self._holes += len(places)
        self._settle()
        return taken

    def _settle(self) -> None:
        """Move the head past holes; squeeze the lists when they are mostly unused."""
        items, head = self.items, self._head
        while self._holes and items[head] is None:
            head += 1
            self._holes -= 1
        self._head = head
        if head + self._holes <= _SPARE + len(items) // 2:
            return
        kept = list(self.places())
        self.order = [self.order[at] for at in kept]
        self.deadlines = [self.deadlines[at] for at in kept]
        self.sizes = [self.sizes[at] for at in kept]
        self.items = [items[at] for at in kept]
        self._head = self._holes = 0
