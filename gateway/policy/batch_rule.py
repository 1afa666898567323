"""The arithmetic of batching: how many items to run now, how many to wait for.

Owns what follows from a service curve ℓ, an arrival rate λ, the N slots and the usual deadline S;
knows no queue of its own and no clock. Two rules, both tested against oracles in bench/sim:

* *surplus*: of the batches that end in time, run the one with the largest b - g·ℓ(b), where g is
  the rate that a slot can sustain at this load. Heads that this makes late are given up; with N > 2
  not for more than comes within S - ℓ(b), or the next slot would find nothing.
* *square-root holding*, for N > 1: below the smallest batch whose repetition keeps up with the load
  and its fluctuation, N·b >= λℓ(b)/0.93 + 1.5·√(λℓ(b)), it pays to wait for more. It keeps slots
  staggered: a slot that takes a small batch is missed when the next, larger one comes.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import accumulate
from math import ceil, inf, sqrt
from typing import Any

from gateway.policy.batch_lane import Lane
from gateway.policy.service import ServiceCurve

_GRID = 128  # points at which the curve is read; below this limit, every size
_UTILISATION = 0.93  # of the slots, that holding aims at
# Standard deviations of a batch's time by which it is taken for longer. Several slots that hold run
# all batches close to their deadlines, a single one only some.
_SAFETY, _SAFETY_ONE = 1.0, 0.5
_WEIGHED = 32  # ways of giving up first items that are compared
_FLUCTUATION = 1.5  # standard deviations of the arrivals during one batch that slots must bear
_DOUBT = 1.0  # standard deviations by which fewer may come to fill a batch


class Targets:
    """What the rules need, tabulated at multiples of `unit`. Sizes are rows, or elements.

    `hold`: the size to wait for when one slot is free. `most`: the largest to run; `fair`: the
    largest for which others may be given up. `drain`: the most that the slots can do, per second; 0
    while the curve is unknown.
    """

    __slots__ = (
        "_best", "_curve", "_hopeful", "_limit", "_safety", "_seconds", "_unit", "_value", "_worth",
        "drain", "fair", "hold", "most",
    )  # fmt: skip

    def __init__(
        self, curve: ServiceCurve, rate: float, slots: int, slo: float | None, limit: int
    ) -> None:
        self._curve, self._limit = curve, limit
        self._unit = unit = -(-limit // _GRID)
        self._safety = 1.0 + curve.deviation * (_SAFETY_ONE if slots == 1 else _SAFETY)
        means = curve.means(unit, -(-limit // unit))
        self._seconds = seconds = [self._safety * mean for mean in means]
        self._hopeful: Targets | None = None
        self._worth, self.drain, self.hold = 0.0, 0.0, 1
        self.most = self.fair = limit
        if curve.known:
            points = range(1, len(seconds))
            self.drain = slots * max(unit * i / max(seconds[i], 1e-9) for i in points)
            if slo is not None:
                self._worth = _worth(seconds, unit, rate, slots, slo)
                if slots > 1 and rate > 0.0:
                    hold = _hold(seconds, unit, rate, slots, slo)
                    if slots > 2:
                        self.fair = min(_fair(seconds, unit, rate, slo), limit)
                    if hold >= limit:  # nothing keeps up with the load
                        self.most = self.fair
                    self.hold = min(hold, self.most)
        self._judge(seconds)

    def hopeful(self) -> Targets:
        """The same, but for judging sizes that nobody has tried as well as they may turn out.
        When a batch ends is foreseen no differently."""
        if self._hopeful is None:
            other = self._hopeful = Targets(self._curve, 0.0, 1, None, self._limit)
            other._seconds, other._safety, other._worth = self._seconds, self._safety, self._worth
            other.drain, other.hold = self.drain, self.hold
            other.fair, other.most = self.fair, self.most
            hopes = self._curve.hopes(self._unit, len(self._seconds) - 1)
            other._judge([self._safety * hope for hope in hopes])
        return self._hopeful

    def _judge(self, seconds: list[float]) -> None:
        """Find what each size is worth, and the best one up to each."""
        self._value = value = [self._unit * i - self._worth * t for i, t in enumerate(seconds)]
        best, self._best = 1, [0]
        for i in range(1, len(value)):
            if value[i] >= value[best]:
                best = i
            self._best.append(best)

    def seconds(self, size: int) -> float:
        """Expected time of a batch of this size."""
        return self._seconds[self._point(size)]

    def within(self, seconds: float) -> int:
        """The largest size that ends within this time."""
        return min((bisect_right(self._seconds, seconds) - 1) * self._unit, self._limit)

    def best(self, size: int) -> int:
        """The size to run when this much may."""
        at = self._point(size)
        best = self._best[at]
        return size if best == at else best * self._unit

    def value(self, size: int) -> float:
        """What running a batch of this size gains over the average use of its time."""
        return self._value[self._point(size)]

    def _point(self, size: int) -> int:
        """The first point of the grid that covers this size."""
        return min(-(-size // self._unit), len(self._seconds) - 1)


def cut(lane: Lane[Any], begin: float, targets: Targets) -> tuple[int, int]:
    """(late, count): give up the first `late` items of the lane, run the next `count`.

    `begin`: when the batch would start. (all, 0) when none can be met.
    """
    want = targets.best(min(lane.size, targets.most))
    if lane.open or begin + targets.seconds(want) <= lane.due:
        return 0, fitting(lane, want) or 1  # one alone may be larger than the best size
    # The soonest item stands in the way of the best batch: weigh giving up the first ones.
    limit = targets.fair
    places = lane.before(begin + targets.seconds(min(limit, lane.size))) + limit
    due, sizes, start = lane.front(places)
    sums = [0, *accumulate(sizes[start : start + places])]
    end = len(sums) - 1
    first = bisect_left(due, begin + targets.seconds(1), start) - start  # before it, none is met

    def clear(late: int) -> bool:
        """Giving up more than `late` gains nothing."""
        size = targets.best(min(lane.size - sums[late], limit))
        return begin + targets.seconds(size) <= due[start + late]

    last = bisect_left(range(end), True, first, end, key=clear)
    best, found = -inf, (lane.count, 0)
    stride = 1 + (last - first) // _WEIGHED
    for late in (*range(first, last, stride), *range(last, min(last + 1, end))):
        slack = due[start + late] - begin
        size = targets.best(min(targets.within(slack), lane.size - sums[late], limit))
        count = bisect_right(sums, sums[late] + size, late) - 1 - late
        if not count and targets.seconds(sizes[start + late]) <= slack:
            count = 1  # larger than the best size, but in time
        value = targets.value(sums[late + count] - sums[late])
        if count and value > best:
            best, found = value, (late, count)
    return found


def fitting(lane: Lane[Any], size: int, skip: int = 0) -> int:
    """How many items in a row fit into this size, when the first `skip` are passed over."""
    if lane.single:
        return min(size, lane.count - skip)
    _, sizes, start = lane.front(skip + size)
    total = count = 0
    for each in sizes[start + skip : start + min(skip + size, lane.count)]:
        total += each
        if total > size:
            break
        count += 1
    return count


def share(hold: int, free: int, slots: int) -> int:
    """The size to wait for when `free` of `slots` stand idle: the more do, the less."""
    return ceil(hold * (1.0 - (free - 1) / slots))


def _worth(seconds: list[float], unit: int, rate: float, slots: int, slo: float) -> float:
    """g: how much one slot can sustain per second at this load without missing deadlines."""
    fastest = 0.0
    for i in range(1, len(seconds)):
        size, time = unit * i, max(seconds[i], 1e-9)
        # One slot: what arrives within S - ℓ(b) can be in the batch. Several, staggered: an item
        # waits for ℓ(b) / N at most.
        if rate * (slo - time) >= size if slots == 1 else time + time / slots <= slo:
            fastest = max(fastest, size / time)
    return min(rate / slots, fastest or inf)


def _fair(seconds: list[float], unit: int, rate: float, slo: float) -> int:
    """The largest batch that can be gathered in the time that it leaves. For a larger one, more
    would be given up than comes, and the next slot would have nothing to do."""
    largest = unit
    for i in range(1, len(seconds)):
        if unit * i <= rate * (slo - seconds[i]):
            largest = unit * i
    return largest


def _hold(seconds: list[float], unit: int, rate: float, slots: int, slo: float) -> int:
    """The smallest batch that keeps up, or what comes nearest to it; 1 waits for nothing."""
    best, fastest, reached = 1, 0.0, 1
    for i in range(1, len(seconds)):
        size, time = unit * i, max(seconds[i], 1e-9)
        if size + _DOUBT * sqrt(size) > 1 + rate * (slo - time):
            continue  # the first item would not last until the batch is full
        expected = rate * time
        if slots * size >= expected / _UTILISATION + _FLUCTUATION * sqrt(expected):
            return size
        reached = i
        if size / time > fastest:
            best, fastest = i, size / time
    # Overload. Wait for the fastest batch; if larger ones are faster still, for what the deadline
    # of the first item allows.
    return unit * best if best < reached else unit * len(seconds)
