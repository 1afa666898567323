"""Requests of tenants beyond what the next batches can use, in the order of fair sharing.

The batcher behind it holds what a few batches take; who waits out here is let in by turns, as many
as a batch takes, and whom the batcher then leaves comes back to his place: it goes by deadlines,
which must not decide between tenants. While there is room behind, nobody waits here.
Reads no clock. Invariant: what waits here is what entered and has not left, by `next`, `discard` or
because the room was full.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from gateway.policy.batch_types import Item, Refusal
from gateway.policy.fairness import FairQueue
from gateway.policy.fairness import Waiting as Place

# While no more than so many batches wait for each replica, all of it is inside.
BATCHES = 2


class Owned(Item, Protocol):
    @property
    def tenant(self) -> str: ...


O = TypeVar("O", bound=Owned)  # noqa: E741


class Anteroom(Generic[O]):
    """`weight`: a tenant's. `size`: what an item counts in a batch's budget."""

    def __init__(self, weight: Callable[[str], float], size: Callable[[O], int]) -> None:
        # Rows bound it, and each item has one at least.
        self._queue: FairQueue[O] = FairQueue(_NO_BOUND, weight)
        self._item_size = size
        self._inside: set[int] = set()
        self.rows = 0

    def __len__(self) -> int:
        return len(self._queue)

    def __contains__(self, item: O) -> bool:
        return id(item) in self._inside

    @property
    def size(self) -> float:
        """Of all that waits, in the unit of a batch's budget."""
        return self._queue.total

    def enter(
        self, item: O, now: float, *, inside: int, rate: float, rows: int
    ) -> tuple[Refusal | None, list[O]]:
        """Why it may not wait, if it may not; and what had to leave for it. `inside`: the size of
        what waits in the batcher; `rate`: of departures, in size per second; `rows`: how many may
        wait here."""
        size = float(self._item_size(item))
        drained = (inside + self._queue.total) / rate if rate > 0.0 else None
        ahead = inside + self._queue.ahead(item.tenant, size)
        if item.deadline <= now or (rate > 0.0 and now + ahead / rate > item.deadline):
            return Refusal(drained, "too_late"), []
        self._queue.push(item, item.tenant, size, priority=item.priority)
        self._inside.add(id(item))
        self.rows += item.rows
        out = []
        while self.rows > rows:
            out.append(self._left(self._queue.shed()))
        if item in out:
            return Refusal(drained, "queue_full"), [other for other in out if other is not item]
        return None, out

    def next(self) -> Place[O] | None:
        """Who comes in; None when nobody waits."""
        place = self._queue.take()
        if place is not None:
            assert place.item is not None
            self._left(place.item)
        return place

    def put_back(self, place: Place[O]) -> None:
        """It was not taken after all."""
        item = place.item
        assert item is not None
        self._queue.put_back(place)
        self._inside.add(id(item))
        self.rows += item.rows

    def discard(self, item: O) -> bool:
        """Its client went. False when it does not wait here."""
        if not self._queue.discard(item):
            return False
        self._left(item)
        return True

    def _left(self, item: O) -> O:
        self._inside.discard(id(item))
        self.rows -= item.rows
        return item


_NO_BOUND = 2**62
