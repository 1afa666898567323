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


class Waiting(Generic[T]):
    """An item and its place. `item` None: a hole, which was taken out of the middle."""

    __slots__ = ("cost", "item", "order", "tenant")

    def __init__(self, order: tuple[int, int], cost: float, item: T, tenant: _Tenant[T]) -> None:
        self.order, self.cost, self.tenant = order, cost, tenant
        self.item: T | None = item

    def __lt__(self, other: Waiting[T]) -> bool:
        return self.order < other.order


class _Tenant(Generic[T]):
    __slots__ = ("cost", "count", "items", "lowest", "name", "served", "weight")

    def __init__(self, name: str, weight: float) -> None:
        self.name, self.weight = name, weight
        self.items: list[Waiting[T]] = []  # a heap, with holes
        self.count = 0
        self.cost = 0.0  # of what waits
        self.served = 0.0  # virtual: cost over weight
        self.lowest = 0  # no item has a lower priority


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
        self.capacity = capacity  # a smaller one counts from the next item on
        self._weight, self._max_tenants = weight, max_tenants
        self._tenants: dict[str, _Tenant[T]] = {}
        self._turns: list[tuple[float, int, _Tenant[T]]] = []  # tenants that wait, by `served`
        self._places: dict[int, Waiting[T]] = {}  # by the identity of the item
        self._virtual = 0.0  # where a tenant that comes begins
        self._count = self._order = 0

    def __len__(self) -> int:
        return self._count

    def cost(self, tenant: str) -> float:
        """Of what this tenant has waiting."""
        found = self._tenants.get(tenant)
        return found.cost if found is not None else 0.0

    @property
    def total(self) -> float:
        """The cost of all that waits."""
        return sum(tenant.cost for tenant in self._tenants.values())

    def ahead(self, tenant: str, cost: float) -> float:
        """What is served before an item of this cost that comes now: its tenant's own, and of each
        other tenant no more than its part beside them."""
        queue = self._tenant(tenant)
        own = (queue.cost + cost) / queue.weight
        others = (t for t in self._tenants.values() if t is not queue)
        return queue.cost + sum(min(t.cost, own * t.weight) for t in others)

    def push(self, item: T, tenant: str, cost: float, *, priority: int = 0) -> T | None:
        """Returns what finds no room, if anything: when full, the last of whoever has most waiting
        for its weight, which may be this very item."""
        if not 0.0 <= cost < float("inf"):
            raise ValueError(f"cost must be finite and not negative, not {cost}")
        queue = self._tenant(tenant)
        self._order += 1
        waiting = Waiting((-priority, self._order), cost, item, queue)
        queue.lowest = min(queue.lowest, priority) if queue.count else priority
        self._insert(waiting)
        return self.shed(waiting) if self._count > self.capacity else None

    def pop(self) -> T | None:
        """The next item, charged to its tenant; None when nothing waits."""
        waiting = self.take()
        return None if waiting is None else waiting.item

    def take(self) -> Waiting[T] | None:
        """As `pop`, but what it gives can be put back."""
        while self._turns:
            served, _, queue = heappop(self._turns)
            if not queue.count or served != queue.served:
                continue  # an old entry: charged since, or emptied
            self._virtual = max(self._virtual, served)
            waiting = heappop(queue.items)
            while waiting.item is None:
                waiting = heappop(queue.items)
            self._forget(waiting)
            queue.served += waiting.cost / queue.weight
            if queue.count:
                self._enter(queue)
            return waiting
        return None

    def put_back(self, waiting: Waiting[T]) -> None:
        """It could not be served: to its old place, and not charged."""
        queue = waiting.tenant
        self._tenants.setdefault(queue.name, queue)
        queue.served = max(0.0, queue.served - waiting.cost / queue.weight)
        queue.lowest = min(queue.lowest, -waiting.order[0]) if queue.count else -waiting.order[0]
        self._insert(waiting, returns=True)

    def discard(self, item: T) -> bool:
        """Take out one that waits, once (its client went); uncharged. False when it does not."""
        waiting = self._places.get(id(item))
        if waiting is None:
            return False
        self._remove(waiting)
        return True

    def settle(self, tenant: str, difference: float) -> None:
        """A popped item cost so much more than said (less, where negative)."""
        queue = self._tenants.get(tenant)
        if queue is not None and difference:
            queue.served = max(0.0, queue.served + difference / queue.weight)
            if queue.count:
                self._enter(queue)

    def shed(self, newest: Waiting[T] | None = None) -> T:
        """Take out the last of whoever has most waiting for its weight. `newest`: of what came
        last, which mostly is that one."""
        heaviest = max(
            (t for t in self._tenants.values() if t.count), key=lambda t: t.cost / t.weight
        )
        last = newest
        if newest is None or newest.tenant is not heaviest or -newest.order[0] > heaviest.lowest:
            last = max(waiting for waiting in heaviest.items if waiting.item is not None)
        assert last is not None
        item = last.item
        assert item is not None
        self._remove(last)
        return item

    def _insert(self, waiting: Waiting[T], *, returns: bool = False) -> None:
        queue = waiting.tenant
        if not queue.count:
            queue.items.clear()  # holes
            if not returns:
                queue.served = max(queue.served, self._virtual)
        assert waiting.item is not None
        self._places[id(waiting.item)] = waiting
        heappush(queue.items, waiting)
        queue.count += 1
        queue.cost += waiting.cost
        self._count += 1
        if queue.count == 1 or returns:
            self._enter(queue)

    def _remove(self, waiting: Waiting[T]) -> None:
        """From the middle: the hole is passed over, and holes are thrown out when they are many."""
        queue = waiting.tenant
        self._forget(waiting)
        waiting.item = None
        if len(queue.items) > 2 * queue.count + 16:
            queue.items = [each for each in queue.items if each.item is not None]
            heapify(queue.items)

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
        return not queue.count and queue.served <= self._virtual

    def _enter(self, queue: _Tenant[T]) -> None:
        self._order += 1
        heappush(self._turns, (queue.served, self._order, queue))
        if len(self._turns) > 4 * len(self._tenants) + 64:  # old entries that nobody popped
            live = [t for t in self._tenants.values() if t.count]
            self._turns = [(t.served, place, t) for place, t in enumerate(live)]
            heapify(self._turns)

    def _forget(self, waiting: Waiting[T]) -> None:
        queue = waiting.tenant
        self._places.pop(id(waiting.item), None)
        self._count -= 1
        queue.count -= 1
        queue.cost = max(0.0, queue.cost - waiting.cost) if queue.count else 0.0
