"""Dynamic batching: which waiting requests a free slot runs together, and when.

Owns every waiting request of one model. Late binding: a batch is closed when a slot is free, never
before. Opens no socket and reads no clock. Invariants: an item added leaves exactly once, through
`Plan.batch`, `Plan.dropped` or `discard`; a batch holds one key and at most `max_batch_size` rows;
a lone request never waits; an item without a deadline is never dropped and never starved.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Generic, NamedTuple, Protocol, TypeVar

from gateway.policy.arrivals import ArrivalRate
from gateway.policy.batch_queue import KeyQueue
from gateway.policy.service import ServiceCurve


class Item(Protocol):
    """What waits. Times are absolute, in seconds; none of these may change while it waits."""

    @property
    def rows(self) -> int: ...
    @property
    def arrived(self) -> float: ...
    @property
    def deadline(self) -> float: ...
    @property
    def priority(self) -> int: ...
    @property
    def key(self) -> Hashable: ...


T = TypeVar("T", bound=Item)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchingKnobs:
    """`slo_s`: the usual deadline, from which holding is decided; None never holds.
    `max_batch_size`, `max_queue`: rows. `patience_s`: an item without a deadline is as urgent as
    one that must end this long after its arrival; one step of priority is worth as much."""

    max_batch_size: int
    slo_s: float | None = None
    max_queue: int = 4096
    hold: bool = True
    patience_s: float = 1.0

    def __post_init__(self) -> None:
        if self.max_batch_size < 1:
            raise ValueError("max_batch_size must be at least 1")
        if self.max_queue < self.max_batch_size:
            raise ValueError("max_queue must be at least max_batch_size")
        if self.slo_s is not None and self.slo_s <= 0:
            raise ValueError("slo_s must be positive")
        if self.patience_s <= 0:
            raise ValueError("patience_s must be positive")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an item was not taken in. `retry_after`: seconds until what waits now has drained, None
    while no drain rate is known."""

    retry_after: float | None
    reason: str  # "queue_full" or "too_late"


class Plan(NamedTuple, Generic[T]):
    """`batch` runs now (may be empty); `dropped` can no longer be met. Both have left the batcher.
    Ask again at `wake` if nothing happens before; None: when an item comes or a slot frees."""

    batch: list[T]
    reason: str  # why this batch, or why none: "full", "all", "late", "hold", "busy", "empty"
    dropped: list[T]
    wake: float | None


class Batcher(Generic[T]):
    """Every waiting request of one model."""

    def __init__(self, knobs: BatchingKnobs) -> None:
        self.knobs = knobs
        self.arrivals = ArrivalRate()
        self.departures = ArrivalRate()
        self._queues: dict[Hashable, KeyQueue[T]] = {}
        self._count = 0
        self._rows = 0

    def __len__(self) -> int:
        return self._count

    @property
    def rows(self) -> int:
        return self._rows

    def add(self, item: T, now: float) -> Refusal | None:
        """Take an item in. It is refused when the queue is full or its time is already over."""
        self.arrivals.observe(now, item.rows)
        if self._rows + item.rows > self.knobs.max_queue and self._count:
            return Refusal(self.drained_in(now), "queue_full")
        if item.deadline <= now:
            return Refusal(self.drained_in(now), "too_late")
        self._put(item, first=False)
        return None

    def discard(self, item: T) -> bool:
        """Take out an item that nobody wants any more. False when it was not waiting."""
        queue = self._queues.get(item.key)
        if queue is None:
            return False
        at = queue.find(item, self._order(item))
        if at < 0:
            return False
        queue.remove(at)
        self._left(queue, 1, item.rows)
        return True

    def requeue(self, items: Sequence[T], now: float) -> None:
        """Take back a batch whose replica died, ahead of its equals, whatever the queue's bound."""
        for item in reversed(items):
            self._put(item, first=True)

    def next(
        self,
        now: float,
        *,
        free: int,
        slots: int,
        curve: ServiceCurve,
        accept: Callable[[Hashable], bool] | None = None,
        ahead: float = 0.0,
    ) -> Plan[T]:
        """Decide. `free`, `slots`: free and all slots of the replicas that could serve; `curve`:
        of the replica that would run the batch; `accept`: the keys that it can run; `ahead`:
        predicted seconds of work that the replica has to finish before it begins this batch.

        Call it when an item was added, when a slot freed, and at `Plan.wake`; with `free=0` too,
        so that items expire on time while every slot is busy.
        """
        if not self._count:
            return Plan([], "empty", [], None)
        if free <= 0:
            return self._expire(now)
        queue = self._pick(accept)
        if queue is None:
            return Plan([], "empty", [], None)
        late: list[int] = []
        batch: list[int] = []
        rows, full, begin = 0, False, now + ahead
        soonest = begin + curve.mean(1)
        for at in queue.places():
            if queue.deadlines[at] < soonest:
                late.append(at)
                continue
            if batch and rows + queue.sizes[at] > self.knobs.max_batch_size:
                full = True
                break
            batch.append(at)
            rows += queue.sizes[at]
        while len(batch) > 1 and queue.deadlines[batch[0]] < begin + curve.mean(rows):
            rows -= queue.sizes[batch[0]]
            late.append(batch.pop(0))
        dropped_rows = sum(queue.sizes[at] for at in late)
        dropped, sent = queue.take(late), queue.take(batch)
        self._left(queue, len(late) + len(batch), dropped_rows + rows)
        self.departures.observe(now, rows)
        return Plan(sent, "full" if full else "all", dropped, now if full else None)

    def drained_in(self, now: float) -> float | None:
        """Seconds until what waits now has been sent, at the present pace."""
        rate = self.departures.rate(now)
        return self._rows / rate if rate > 0 else None

    def _put(self, item: T, *, first: bool) -> None:
        queue = self._queues.get(item.key)
        if queue is None:
            queue = self._queues[item.key] = KeyQueue(item.key)
        queue.add(item, self._order(item), item.deadline, item.rows, first=first)
        self._count += 1
        self._rows += item.rows

    def _order(self, item: T) -> float:
        """Earliest deadline first; a step of priority or a missing deadline count as patience."""
        due = item.deadline if item.deadline != inf else item.arrived + self.knobs.patience_s
        return due - item.priority * self.knobs.patience_s

    def _pick(self, accept: Callable[[Hashable], bool] | None) -> KeyQueue[T] | None:
        """The key whose head is most urgent."""
        if accept is None:
            queues = list(self._queues.values())
        else:
            queues = [queue for key, queue in self._queues.items() if accept(key)]
        return min(queues, key=lambda queue: queue.urgency, default=None)

    def _expire(self, now: float) -> Plan[T]:
        dropped: list[T] = []
        wake = inf
        for queue in list(self._queues.values()):
            late = [at for at in queue.places() if queue.deadlines[at] <= now]
            rows = sum(queue.sizes[at] for at in late)
            dropped += queue.take(late)
            self._left(queue, len(late), rows)
            wake = min(wake, min((queue.deadlines[at] for at in queue.places()), default=inf))
        return Plan([], "busy", dropped, wake if wake != inf else None)

    def _left(self, queue: KeyQueue[T], count: int, rows: int) -> None:
        self._count -= count
        self._rows -= rows
        if not queue:
            self._queues.pop(queue.key, None)
