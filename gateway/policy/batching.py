"""Dynamic batching: which waiting requests a free slot runs together, and when.

Owns every waiting request of one model. Late binding: a batch is closed when a slot is free, never
before. Opens no socket and reads no clock; the arithmetic is in batch_rule. Invariants: an item
added leaves exactly once, through `Plan.batch`, `Plan.dropped` or `discard`; a batch holds one key
and keeps within `max_batch_size`; a lone request at low load never waits; an item without a
deadline is never dropped for being late and never starved.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from math import inf, nextafter
from typing import Generic, NamedTuple

from gateway.policy.arrivals import ArrivalRate
from gateway.policy.batch_index import LaneIndex
from gateway.policy.batch_lane import Lane
from gateway.policy.batch_rule import Targets, cut, fitting, share
from gateway.policy.batch_types import BatchingKnobs, Item, Plan, Refusal, T
from gateway.policy.service import ServiceCurve

__all__ = ["Batcher", "BatchingKnobs", "Item", "Plan", "Refusal"]

_TIMER_S = 0.002  # how late a timer may fire: holding ends this much before it must…
_TIMER_SHARE = 0.05  # …but no more than this part of the usual deadline
_ARRIVALS = 3.0  # within the time of so many, one comes
_REFRESH = 0.03  # relative change of the load, and share of the deadline, that renew the targets
_KEPT = 64  # curves whose targets are kept
_TRY = 8  # one batch in so many may try a size that nobody has tried
_RETRY = 8  # a probe of what seems hopeless may take one part in so many of a slot's time…
_PROBE_S = 0.25  # …but comes at least this often
_ALIKE_WEIGHT = 1.0 / 64.0


class _Derived(NamedTuple):
    """Targets, and what they were derived from."""

    targets: Targets
    changes: int
    slots: int
    rate: float
    check_at: float


class Batcher(Generic[T]):
    """Every waiting request of one model."""

    def __init__(self, knobs: BatchingKnobs) -> None:
        self.knobs = knobs
        slo = knobs.slo_s
        fast = 0.25 if slo is None else max(slo / 2.0, 0.005)
        self.arrivals = ArrivalRate(fast, 12.0 * fast)
        self.departures = ArrivalRate()
        self._limit = knobs.max_cost or knobs.max_batch_size
        self._lead = _TIMER_S if slo is None else min(_TIMER_S, slo * _TIMER_SHARE)
        self._lanes: LaneIndex[T] = LaneIndex()
        self._ranks: dict[int, int] = {}  # waiting size by priority
        self._count = self._rows = self._size = 0
        self._derived: dict[ServiceCurve, _Derived] = {}
        self._displaced: list[T] = []
        self._last_key: Hashable = None
        self._alike = 1.0  # how often an item has the key of the one before
        self._batches = 0
        self._last_end = 0.0  # when the batch sent last should end
        self._last_probe = -inf
        self._drain = 0.0  # the most that the slots can do, per second; 0 while unknown

    def __len__(self) -> int:
        return self._count + len(self._displaced)

    @property
    def rows(self) -> int:
        return self._rows

    @property
    def size(self) -> int:
        """Of all that waits, in the unit of a batch's bound: rows, or what `cost` counts."""
        return self._size

    @property
    def limit(self) -> int:
        """That bound."""
        return self._limit

    def add(self, item: T, now: float) -> Refusal | None:
        """Take an item in, or say why not. An item of higher priority displaces one of lower
        priority from a full queue; the displaced one is in the next plan's `dropped`."""
        knobs = self.knobs
        rows = size = item.rows
        if knobs.cost is not None:
            size = knobs.cost(item)
        self.arrivals.observe(now, size)
        if rows > knobs.max_batch_size or size > self._limit:
            return Refusal(None, "too_large")
        if item.deadline <= now or self._outranked(item, size, now):
            return Refusal(self.drained_in(now), "too_late")
        if self._rows + rows > knobs.max_queue and not self._displace(item):
            return Refusal(self.drained_in(now), "queue_full")
        key = item.key
        self._alike += ((key == self._last_key) - self._alike) * _ALIKE_WEIGHT
        self._last_key = key
        lane = self._enter(item, rows, size)
        if lane.append(item, self._due(item), size):
            self._lanes.moved(lane)
        return None

    def discard(self, item: T) -> bool:
        """Take out an item that nobody wants any more. False when it was not waiting."""
        for i, displaced in enumerate(self._displaced):
            if displaced is item:
                del self._displaced[i]
                return True
        return self._remove(item)

    def requeue(self, items: Sequence[T], now: float) -> None:
        """Take back a batch whose replica died, ahead of its equals, whatever the queue's bound.
        What cannot be met any more is dropped by the next plan."""
        self._last_end = min(self._last_end, now)
        self._put_back(items)

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
        """Decide. `free`, `slots`: how many batches could start now, and how many can execute at
        once, on the replicas that could serve (one that executes one batch at a time counts once,
        however many it takes in). `curve`: of the replica that would run the batch; `accept`: the
        keys that it can run; `ahead`: seconds of work that it has to finish first.

        Call it when an item was added, when a slot freed, and at `Plan.wake`; with `free=0` too,
        so that items expire on time while every slot is busy. Call again after a batch.
        """
        dropped, self._displaced = self._displaced, []
        while (lane := self._lanes.expiring()) is not None and lane.due <= now:
            dropped += self._take(lane, 0, lane.before(nextafter(now, inf)))
        if not self._count:
            return Plan([], "late" if dropped else "empty", dropped, None)
        if free <= 0:
            return Plan([], "busy", dropped, self._expiry())
        begin = now + ahead + self.knobs.overhead_s
        while (lane := self._lanes.lead(now, accept)) is not None:
            targets = self._targets(curve, slots, now)
            until = self._hold(lane, targets, curve, now, free, slots, ahead)
            if until > now:
                wake = min(until, self._expiry() or inf)
                return Plan([], "hold" if ahead <= self._lead else "busy", dropped, wake)
            if self._batches % _TRY == _TRY - 1:
                targets = targets.hopeful()
            late, count = cut(lane, begin, targets)
            probe = not count and self._probe(lane, targets, now)
            if probe:
                late, count = 0, fitting(lane, self._limit)
            if late and (free == 1 or not count):  # else another slot may still meet them
                dropped += self._take(lane, 0, late)
                late = 0
            if count:
                waiting = self._size
                batch, reason = self._close(lane, late, count, targets, begin)
                sent = waiting - self._size
                self._batches += 1
                self._last_end = begin + targets.seconds(sent)
                self.departures.observe(now, sent)
                return Plan(batch, "probe" if probe else reason, dropped, self._expiry())
        return Plan([], "unaccepted" if self._count else "late", dropped, self._expiry())

    def drained_in(self, now: float) -> float | None:
        """Seconds until what waits now has been sent, at the present pace. Where nothing has been
        sent lately: until it is sent or too late, if there is an aim."""
        rate = self.departures.rate(now)
        if rate > 0.0:
            return self._size / rate
        return self.knobs.slo_s if self._size else None

    # ---------------------------------------------------------------------------------- decisions

    def _targets(self, curve: ServiceCurve, slots: int, now: float) -> Targets:
        """What the rules need, derived anew when the curve, the slots or the load have changed."""
        derived = self._derived.get(curve)
        same = derived is not None and derived.changes == curve.changes and derived.slots == slots
        if derived is not None and same and now < derived.check_at:
            return derived.targets
        slo = self.knobs.slo_s
        rate = 0.0 if slo is None else self.arrivals.rate(now) * self._alike
        check_at = inf if slo is None else now + slo * _REFRESH
        if derived is not None and same and abs(rate - derived.rate) <= _REFRESH * derived.rate:
            self._derived[curve] = derived._replace(check_at=check_at)
            return derived.targets
        if len(self._derived) >= _KEPT:
            self._derived.clear()
        targets = Targets(curve, rate, slots, slo, self._limit)
        self._derived[curve] = _Derived(targets, curve.changes, slots, rate, check_at)
        self._drain = targets.drain
        return targets

    def _hold(
        self,
        lane: Lane[T],
        targets: Targets,
        curve: ServiceCurve,
        now: float,
        free: int,
        slots: int,
        ahead: float,
    ) -> float:
        """Until when the batch is better kept open; `now` or earlier: close it."""
        if ahead > self._lead:
            # It could not begin before; until then it grows free of charge.
            return now + ahead - self._lead
        slo = self.knobs.slo_s
        if slo is None or not self.knobs.hold:
            return now
        size = self._size
        if targets.hold == 1 or self._lanes.keys > 1:
            return now
        if size >= share(targets.hold, free, slots):
            return now
        lanes = self._lanes.of_key(lane.key)
        due = min(min(each.due, each.soonest.arrived + slo) for each in lanes)
        # Front-run time: after it, one more item could not be added without losing the first. A
        # timer may be late; but the next arrival, too, will make us look.
        lead = min(self._lead, _ARRIVALS / max(self.arrivals.rate(now), 1e-9))
        until = due - curve.upper(size + 1) - self.knobs.overhead_s - lead
        if slots == 2 and free == 1:  # half a batch before the other slot is free
            until = min(until, self._last_end - targets.seconds(size) / 2.0)
        return until

    def _close(
        self, lane: Lane[T], late: int, count: int, targets: Targets, begin: float
    ) -> tuple[list[T], str]:
        """The batch: `count` items of the leading lane past `late`, and, as far as this harms none
        of them, what waits in the other lanes of the key."""
        lanes = list(self._lanes.of_key(lane.key))
        waiting = sum(each.size for each in lanes)
        slack = inf if lane.open else lane.due_at(late) - begin
        before = self._size
        batch = self._take(lane, late, count)
        if len(lanes) > 1:
            goal = targets.best(min(targets.within(slack), waiting, targets.most))
            for other in lanes:
                room = goal - (before - self._size)
                if other is lane or room <= 0:
                    continue
                skip = 0 if other.open else other.before(begin + targets.seconds(goal))
                batch += self._take(other, skip, fitting(other, room, skip))
        if self.knobs.cost is not None:
            self._trim(batch)
        size = before - self._size
        if size == waiting:
            return batch, "all"
        return batch, "full" if size == self._limit else "sized"

    def _trim(self, batch: list[T]) -> None:
        """Put back what is over the bound on rows, when batches are budgeted in something else."""
        rows = sum(item.rows for item in batch)
        back = []
        while rows > self.knobs.max_batch_size:
            back.append(batch.pop())
            rows -= back[-1].rows
        self._put_back(back[::-1])

    def _probe(self, lane: Lane[T], targets: Targets, now: float) -> bool:
        """Whether to run what the curve says is hopeless. When even a fresh item could not be met,
        the curve may be wrong, and nothing but a batch can tell."""
        freshest = lane.last
        if freshest.deadline - freshest.arrived >= targets.seconds(1):
            return False
        if now < self._last_probe + min(_RETRY * targets.seconds(1), _PROBE_S):
            return False
        self._last_probe = now
        return True

    def _outranked(self, item: T, size: int, now: float) -> bool:
        """Whether what has more priority keeps every slot busy until this item is late."""
        ranks = self._ranks
        if not ranks or (len(ranks) == 1 and item.priority in ranks):
            return False
        if item.deadline == inf or not self._drain:
            return False
        above = sum(waits for rank, waits in ranks.items() if rank > item.priority)
        return above > 0 and now + (above + size) / self._drain > item.deadline

    def _displace(self, item: T) -> bool:
        """Make room in a full queue at the cost of lower priorities."""
        room = self.knobs.max_queue - item.rows
        while self._rows > room:
            lowest = min(self._ranks)
            if lowest >= item.priority:
                return False
            lane = next(lane for lane in self._lanes.all() if lane.priority == lowest)
            last = lane.last
            self._remove(last)
            self._displaced.append(last)
        return True

    # -------------------------------------------------------------------------------- bookkeeping

    def _expiry(self) -> float | None:
        lane = self._lanes.expiring()
        return None if lane is None else lane.due

    def _due(self, item: T) -> float:
        deadline = item.deadline
        return deadline if deadline != inf else item.arrived + self.knobs.patience_s

    def _enter(self, item: T, rows: int, size: int) -> Lane[T]:
        priority = item.priority
        self._count += 1
        self._rows += rows
        self._size += size
        self._ranks[priority] = self._ranks.get(priority, 0) + size
        return self._lanes.of(item.key, priority, item.deadline == inf)

    def _put_back(self, items: Sequence[T]) -> None:
        for item in reversed(items):
            size = item.rows if self.knobs.cost is None else self.knobs.cost(item)
            lane = self._enter(item, item.rows, size)
            if lane.prepend(item, self._due(item), size):
                self._lanes.moved(lane)

    def _remove(self, item: T) -> bool:
        lane = self._lanes.find(item.key, item.priority, item.deadline == inf)
        if lane is None:
            return False
        before = lane.size
        if not lane.remove(item, self._due(item)):
            return False
        self._left(lane, [item], before - lane.size)
        return True

    def _take(self, lane: Lane[T], skip: int, count: int) -> list[T]:
        before = lane.size
        items = lane.take_from(skip, count)
        self._left(lane, items, before - lane.size)
        return items

    def _left(self, lane: Lane[T], items: list[T], size: int) -> None:
        self._count -= len(items)
        self._size -= size
        self._rows -= size if self.knobs.cost is None else sum(item.rows for item in items)
        rest = self._ranks[lane.priority] - size
        if rest:
            self._ranks[lane.priority] = rest
        else:
            del self._ranks[lane.priority]
        self._lanes.moved(lane)
