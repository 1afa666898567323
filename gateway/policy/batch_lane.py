"""The waiting items of one key and one priority, soonest due first.

Owns order and membership; decides nothing. Parallel lists with a moving head: appending, taking
from the front and finding a deadline's place run at C speed. A discarded item leaves a hole, which
is squeezed out of the front when the front is asked for. Invariants: `due` never falls along the
lane; either every item has a deadline, equal to its due time, or (an open lane) none has.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Hashable
from itertools import compress
from typing import Generic, TypeVar

T = TypeVar("T")

_SPARE = 256  # passed places that are tolerated before the lists are cut


class Lane(Generic[T]):
    """`size`: of all that waits; `single`: while every size was 1 since the lane was last empty."""

    __slots__ = (
        "_due",
        "_head",
        "_holes",
        "_items",
        "_sizes",
        "count",
        "key",
        "open",
        "priority",
        "single",
        "size",
    )

    def __init__(self, key: Hashable, priority: int, open_: bool) -> None:
        self.key, self.priority, self.open = key, priority, open_
        self.count = self.size = 0
        self.single = True
        self._due: list[float] = []
        self._sizes: list[int] = []
        self._items: list[T | None] = []
        self._head = self._holes = 0

    @property
    def due(self) -> float:
        """When the soonest item is due; the lane must not be empty."""
        return self._due[self._head]

    @property
    def soonest(self) -> T:
        item = self._items[self._head]
        assert item is not None
        return item

    @property
    def last(self) -> T:
        """The item due last."""
        at = len(self._items) - 1
        while (item := self._items[at]) is None:
            at -= 1
        return item

    def append(self, item: T, due: float, size: int) -> bool:
        """Behind all that are due no later. True when it is now the soonest."""
        if size != 1:
            self.single = False
        self.count += 1
        self.size += size
        order = self._due
        if not order or due >= order[-1]:
            order.append(due)
            self._sizes.append(size)
            self._items.append(item)
            return self.count == 1
        return self._insert(bisect_right(order, due, self._head), item, due, size)

    def prepend(self, item: T, due: float, size: int) -> bool:
        """Ahead of all that are due no sooner. True when it is now the soonest."""
        if size != 1:
            self.single = False
        self.count += 1
        self.size += size
        return self._insert(bisect_left(self._due, due, self._head), item, due, size)

    def remove(self, item: T, due: float) -> bool:
        """Take one out, wherever it stands. False when it does not wait here."""
        at = bisect_left(self._due, due, self._head)
        items, end = self._items, len(self._due)
        while at < end and self._due[at] == due:
            if items[at] is item:
                items[at] = None
                self._holes += 1
                self._leave(1, self._sizes[at])
                return True
            at += 1
        return False

    def front(self, places: int) -> tuple[list[float], list[int], int]:
        """(due, sizes, start): the lists in which the first `places` waiting items, or all of
        them, stand without a gap from `start` on. They are the lane's own: read, do not keep."""
        while self._holes:
            head, end = self._head, min(self._head + places, len(self._items))
            window = self._items[head:end]
            holes = window.count(None)
            if not holes:
                break
            # Push what waits to the right, against what lies behind the window.
            mask = [item is not None for item in window]
            start = head + holes
            self._due[start:end] = list(compress(self._due[head:end], mask))
            self._sizes[start:end] = list(compress(self._sizes[head:end], mask))
            self._items[head:end] = [None] * holes + list(compress(window, mask))
            self._head = start
            self._holes -= holes
        return self._due, self._sizes, self._head

    def before(self, due: float) -> int:
        """How many items are due before this."""
        count = bisect_left(self._due, due, self._head) - self._head
        if count and self._holes:
            self.front(count)
            count = bisect_left(self._due, due, self._head) - self._head
        return count

    def due_at(self, place: int) -> float:
        """When the item at this place of a front without gaps is due."""
        return self._due[self._head + place]

    def take(self, count: int) -> list[T]:
        """The first `count` items, which leave."""
        _, sizes, head = self.front(count)
        end = head + count
        taken: list[T] = self._items[head:end]  # type: ignore[assignment]  # no gaps in front
        size = count if self.single else sum(sizes[head:end])
        self._items[head:end] = [None] * count
        self._head = end
        self._leave(count, size)
        return taken

    def take_from(self, skip: int, count: int) -> list[T]:
        """As `take`, but leaves the first `skip` items where they are."""
        if not skip:
            return self.take(count)
        due, sizes, head = self.front(skip + count)
        middle, end = head + skip, head + skip + count
        taken: list[T] = self._items[middle:end]  # type: ignore[assignment]  # no gaps in front
        size = sum(sizes[middle:end])
        due[head + count : end] = due[head:middle]
        sizes[head + count : end] = sizes[head:middle]
        self._items[head:end] = [None] * count + self._items[head:middle]
        self._head = head + count
        self._leave(count, size)
        return taken

    def _insert(self, at: int, item: T, due: float, size: int) -> bool:
        self._due.insert(at, due)
        self._sizes.insert(at, size)
        self._items.insert(at, item)
        return at == self._head

    def _leave(self, count: int, size: int) -> None:
        self.count -= count
        self.size -= size
        if not self.count:
            self._due.clear()
            self._sizes.clear()
            self._items.clear()
            self._head = self._holes = 0
            self.single = True
            return
        items, head = self._items, self._head
        while items[head] is None:
            head += 1
            self._holes -= 1
        self._head = head
        if head > _SPARE and 2 * head > len(items):
            del self._due[:head], self._sizes[:head], items[:head]
            self._head = 0
