"""Fair sharing between tenants: whose waiting request is next.

Owns a bounded queue of waiting items. The next item is that of the tenant which has been served
least for its weight: a virtual counter of cost per tenant (start-time fair queuing; for tokens,
Sheng and others' virtual token counter). A tenant that was idle starts level with the busy ones, so
nobody saves up. A client's own priorities reorder its tenant's items and never touch other tenants.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

T = TypeVar("T")


class _Waiting(Generic[T]):
    __slots__ = ("cost", "item", "order")

    def __init__(self, order: tuple[int, int], cost: float, item: T) -> None:
        self.order, self.cost, self.item = order, cost, item

    def __lt__(self, other: _Waiting[T]) -> bool:
        return self.order < other.order


class _Tenant(Generic[T]):
    __slots__ = ("cost", "items", "name", "served", "weight")

    def __init__(self, name: str, weight: float) -> None:
        self.name, self.weight = name, weight
        self.items: list[_Waiting[T]] = []
        self.cost = 0.0  # of what waits
        self.served = 0.0  # virtual: cost over weight


class FairQueue(Generic[T]):
    """`capacity`: items that may wait. `weight`: a tenant's part, 1 unless said. At most
    `max_tenants` are told apart; those beyond share one turn. For any two tenants that both have
    something waiting, what they were served, over their weights, differs by at most one largest
    item of each over its weight."""

    def __init__(
        self,
        capacity: int,
        weight: Callable[[str], float] = lambda tenant: 1.0,
        *,
        max_tenants: int = 1024,
    ) -> None:
        if capacity < 1 or max_tenants < 1:
            raise ValueError("capacity and max_tenants must be at least 1")
        self._capacity, self._weight, self._max_tenants = capacity, weight, max_tenants
        self._tenants: dict[str, _Tenant[T]] = {}
        self._turns: list[tuple[float, int, _Tenant[T]]] = []  # tenants that wait, by `served`
        self._virtual = 0.0  # where a tenant that comes begins
        self._count = self._order = 0

    def __len__(self) -> int:
        return self._count

    def cost(self, tenant: str) -> float:
        """Of what this tenant has waiting."""
        found = self._tenants.get(tenant)
        return found.cost if found is not None else 0.0

    def push(self, item: T, tenant: str, cost: float, *, priority: int = 0) -> T | None:
        """Returns what finds no room, if anything: when full, the last of whoever has most waiting
        for its weight, which may be this very item."""
        if not 0.0 <= cost < float("inf"):
            raise ValueError(f"cost must be finite and not negative, not {cost}")
        queue = self._tenant(tenant)
        if not queue.items:
            queue.served = max(queue.served, self._virtual)
            self._enter(queue)
        self._order += 1
        heappush(queue.items, _Waiting((-priority, self._order), cost, item))
        queue.cost += cost
        self._count += 1
        return self._shed() if self._count > self._capacity else None

    def pop(self) -> T | None:
        """The next item, charged to its tenant; None when nothing waits."""
        while self._turns:
            served, _, queue = heappop(self._turns)
            if not queue.items or served != queue.served:
                continue  # an old entry: charged since, or emptied
            self._virtual = max(self._virtual, served)
            waiting = heappop(queue.items)
            self._forget(queue, waiting)
            queue.served += waiting.cost / queue.weight
            if queue.items:
                self._enter(queue)
            return waiting.item
        return None

    def discard(self, item: T, tenant: str) -> bool:
        """Take out one that waits (its client went); uncharged. False when it does not wait."""
        queue = self._tenants.get(tenant) or self._tenants.get("")
        for place, waiting in enumerate(queue.items if queue is not None else ()):
            if waiting.item is item:
                assert queue is not None
                del queue.items[place]
                heapify(queue.items)
                self._forget(queue, waiting)
                return True
        return False

    def settle(self, tenant: str, difference: float) -> None:
        """A popped item cost so much more than said (less, where negative)."""
        queue = self._tenants.get(tenant)
        if queue is not None and difference:
            queue.served = max(0.0, queue.served + difference / queue.weight)
            if queue.items:
                self._enter(queue)

    def _tenant(self, name: str) -> _Tenant[T]:
        found = self._tenants.get(name)
        if found is None:
            if len(self._tenants) >= self._max_tenants:
                self._sweep()
            if len(self._tenants) >= self._max_tenants:
                name = ""  # no room to tell it apart
            found = self._tenants.get(name)
        if found is None:
            weight = self._weight(name)
            if not 0.0 < weight < float("inf"):
                raise ValueError(f"the weight of tenant {name!r} must be above 0, not {weight}")
            found = self._tenants[name] = _Tenant(name, weight)
        return found

    def _sweep(self) -> None:
        """Forget those of whom nothing waits and who are owed and owe nothing."""
        for name in [n for n, t in self._tenants.items() if self._level(t)]:
            del self._tenants[name]

    def _level(self, queue: _Tenant[T]) -> bool:
        return not queue.items and queue.served <= self._virtual

    def _enter(self, queue: _Tenant[T]) -> None:
        self._order += 1
        heappush(self._turns, (queue.served, self._order, queue))
        if len(self._turns) > 4 * len(self._tenants) + 64:  # old entries that nobody popped
            live = [t for t in self._tenants.values() if t.items]
            self._turns = [(t.served, place, t) for place, t in enumerate(live)]
            heapify(self._turns)

    def _forget(self, queue: _Tenant[T], waiting: _Waiting[T]) -> None:
        self._count -= 1
        queue.cost = max(0.0, queue.cost - waiting.cost) if queue.items else 0.0

    def _shed(self) -> T:
        heaviest = max(
            (t for t in self._tenants.values() if t.items), key=lambda t: t.cost / t.weight
        )
        last = max(heaviest.items)
        heaviest.items.remove(last)
        heapify(heaviest.items)
        self._forget(heaviest, last)
        return last.item
