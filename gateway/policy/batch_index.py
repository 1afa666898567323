"""All lanes of one model, and which of them comes next.

Owns the lanes by key. The next one is that of the highest priority, then the one due soonest; every
eighth choice goes to the open lane that is longest overdue, so that what has no deadline is not
starved by what has more priority. While one lane is all there is, nothing is sorted. Invariant: at
most one lane is empty, and then it is the only one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from heapq import heappop, heappush
from typing import Generic, TypeVar

from gateway.policy.batch_lane import Lane

T = TypeVar("T")
Place = tuple[int, float, int, Lane[T]]  # rank, due, a number that tells equals apart, the lane

_TURN = 8  # one choice in so many is for what is overdue
_SPARE = 64  # stale places that a heap may keep


class LaneIndex(Generic[T]):
    def __init__(self) -> None:
        self._keys: dict[Hashable, list[Lane[T]]] = {}
        self._only: Lane[T] | None = None
        self._lanes = 0
        # Places go stale when a lane's soonest item leaves; they are thrown out when they surface.
        self._ranked: list[Place[T]] = []  # all, by priority
        self._expiring: list[Place[T]] = []  # those with deadlines, by due time only
        self._patient: list[Place[T]] = []  # open ones, by due time only
        self._placed = 0
        self._choices = 0

    @property
    def keys(self) -> int:
        """How many keys wait."""
        return len(self._keys)

    def find(self, key: Hashable, priority: int, open_: bool) -> Lane[T] | None:
        for lane in self._keys.get(key, ()):
            if lane.priority == priority and lane.open is open_:
                return lane
        return None

    def of(self, key: Hashable, priority: int, open_: bool) -> Lane[T]:
        """The lane, made if need be; the caller puts something into it."""
        for lane in self._keys.get(key, ()):
            if lane.priority == priority and lane.open is open_:
                return lane
        if self._only is not None:
            if self._only.count:
                self._place(self._only)
            else:
                self._drop(self._only)
        lane = Lane(key, priority, open_)
        self._keys.setdefault(key, []).append(lane)
        self._lanes += 1
        self._only = lane if self._lanes == 1 else None
        return lane

    def of_key(self, key: Hashable) -> list[Lane[T]]:
        """The lanes of a key, in the order in which a batch takes from them."""
        lanes = self._keys[key]
        if len(lanes) > 1:
            lanes.sort(key=lambda lane: (-lane.priority, lane.due))
        return lanes

    def all(self) -> list[Lane[T]]:
        return [lane for lanes in self._keys.values() for lane in lanes]

    def moved(self, lane: Lane[T]) -> None:
        """The lane's soonest item is another one now, or none is left."""
        if self._only is not None:
            return
        if lane.count:
            self._place(lane)
            return
        self._drop(lane)
        if self._lanes == 1:
            self._only = next(iter(self._keys.values()))[0]
            self._ranked.clear()
            self._expiring.clear()
            self._patient.clear()

    def lead(self, now: float, accept: Callable[[Hashable], bool] | None) -> Lane[T] | None:
        """The lane that the next batch starts with, among the keys that are accepted."""
        if (only := self._only) is not None:
            return only if only.count and (accept is None or accept(only.key)) else None
        self._choices += 1
        if self._choices % _TURN == 0 and _surface(self._patient):
            _, due, _, lane = self._patient[0]
            if due <= now and (accept is None or accept(lane.key)):
                return lane
        passed: list[Place[T]] = []
        found = None
        while _surface(self._ranked):
            lane = self._ranked[0][-1]
            if accept is None or accept(lane.key):
                found = lane
                break
            passed.append(heappop(self._ranked))
        for place in passed:
            heappush(self._ranked, place)
        return found

    def expiring(self) -> Lane[T] | None:
        """The lane of the earliest deadline; None when nothing has one."""
        if (only := self._only) is not None:
            return only if only.count and not only.open else None
        return self._expiring[0][-1] if _surface(self._expiring) else None

    def _place(self, lane: Lane[T]) -> None:
        self._placed += 1
        due, number = lane.due, self._placed
        heappush(self._ranked, (-lane.priority, due, number, lane))
        heappush(self._patient if lane.open else self._expiring, (0, due, number, lane))
        if len(self._ranked) > _SPARE + 4 * self._lanes:
            self._sort()

    def _sort(self) -> None:
        """Rid the heaps of stale places."""
        places = [(0, lane.due, n, lane) for n, lane in enumerate(self.all()) if lane.count]
        self._placed = len(places)
        self._ranked = sorted((-lane.priority, due, n, lane) for _, due, n, lane in places)
        self._expiring = sorted(place for place in places if not place[-1].open)
        self._patient = sorted(place for place in places if place[-1].open)

    def _drop(self, lane: Lane[T]) -> None:
        lanes = self._keys[lane.key]
        lanes.remove(lane)
        if not lanes:
            del self._keys[lane.key]
        self._lanes -= 1


def _surface(heap: list[Place[T]]) -> bool:
    """Bring a place that still holds to the top. False when there is none."""
    while heap:
        _, due, _, lane = heap[0]
        if lane.count and lane.due == due:
            return True
        heappop(heap)
    return False
