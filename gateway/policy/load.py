"""How much a replica has to do: the counters that routing reads, and the leases that move them.

A lease is taken once and released once, however often and in whatever order `release` is called;
it is bound to the replica's generation, so a late release never touches a new incarnation's
counters. Counters are never negative, and exactly zero when nothing is held. Reads no clock.
"""

from __future__ import annotations

from gateway.policy.slowstart import SlowStart


class ReplicaLoad:
    """The load of one replica, in one worker's view.

    `work` is the predicted work of the leases held, in any unit that all replicas of a pool share
    (rows, tokens, seconds on a replica of weight 1). `share` is `weight` × slow start × `health`:
    what routing divides by; it is 0 for a drained replica and for one of weight 0. It is kept
    ready: change its factors by their setters, and while `ramping` call `refresh(now)` first.
    """

    __slots__ = (
        "_slow_start",
        "drained",
        "generation",
        "health",
        "in_flight",
        "name",
        "ramping",
        "share",
        "slots",
        "started",
        "weight",
        "work",
    )

    def __init__(
        self,
        name: str,
        weight: float = 1.0,
        slots: int = 1,
        *,
        slow_start: SlowStart | None = None,
    ) -> None:
        self.name, self.slots = name, slots
        self._slow_start = slow_start or SlowStart(window_s=0.0)
        self.weight, self.health = _weight(weight), 1.0
        self.work, self.in_flight, self.generation = 0.0, 0, 0
        self.started = float("-inf")
        self.ramping = self.drained = False
        self.share = self.weight

    def take(self, cost: float, now: float) -> Lease:
        """Hold `cost` of this replica from now on. The caller owes exactly one `release`."""
        return Lease(self, cost, now)

    def renew(self, now: float) -> int:
        """A new incarnation: what the old one held is void, and slow start begins again."""
        self.generation += 1
        self.work, self.in_flight = 0.0, 0
        self.restart(now)
        return self.generation

    def restart(self, now: float) -> None:
        """Begin slow start (a recovered replica); leases stay."""
        self.started, self.ramping = now, self._slow_start.window_s > 0.0
        self.refresh(now)

    def refresh(self, now: float) -> None:
        """Bring `share` up to date. Cheap; needed only while `ramping`, or after a change."""
        factor = 1.0
        if self.ramping:
            factor = self._slow_start.factor(now - self.started)
            self.ramping = factor < 1.0
        self.share = 0.0 if self.drained else self.weight * factor * self.health

    def set_weight(self, weight: float, now: float) -> None:
        self.weight = _weight(weight)
        self.refresh(now)

    def set_health(self, health: float, now: float) -> None:
        """`health`, above 0, is the speed against what the weight promises. It never excludes."""
        if not 0.0 < health < float("inf"):
            raise ValueError(f"health must be finite and above 0, not {health}")
        self.health = health
        self.refresh(now)

    def drain(self, now: float) -> None:
        """No new leases by routing; those held run to their end."""
        self.drained = True
        self.refresh(now)

    def undrain(self, now: float) -> None:
        self.drained = False
        self.restart(now)


class Lease:
    """A request's (or batch's) hold on a replica. Also remembers what it met, for learning."""

    __slots__ = (
        "cost",
        "generation",
        "load",
        "met_in_flight",
        "met_work",
        "released",
        "replica",
        "taken",
    )

    def __init__(self, load: ReplicaLoad, cost: float, now: float) -> None:
        if not 0.0 <= cost < float("inf"):
            raise ValueError(f"cost must be finite and not negative, not {cost}")
        self.load: ReplicaLoad | None = load
        self.replica, self.generation = load.name, load.generation
        self.cost, self.taken = cost, now
        self.released: float | None = None
        self.met_work, self.met_in_flight = load.work, load.in_flight
        load.work += cost
        load.in_flight += 1

    @property
    def held(self) -> bool:
        """Whether this lease still weighs on the replica."""
        load = self.load
        return load is not None and load.generation == self.generation

    def reprice(self, cost: float) -> None:
        """The work still ahead has changed, e.g. the prompt is done and only decoding remains."""
        if not 0.0 <= cost < float("inf"):
            raise ValueError(f"cost must be finite and not negative, not {cost}")
        load = self.load
        if load is not None and load.generation == self.generation:
            load.work = max(0.0, load.work + cost - self.cost)
            self.cost = cost

    def release(self, now: float) -> bool:
        """Give the hold back. False when it was given back before or its incarnation is gone."""
        load, self.load = self.load, None
        if load is None:
            return False
        self.released = now
        if load.generation != self.generation:
            return False
        load.in_flight -= 1
        # Exact zero when idle: rounding errors of long sums must not outlive the work.
        load.work = max(0.0, load.work - self.cost) if load.in_flight else 0.0
        return True


def _weight(weight: float) -> float:
    if not 0.0 <= weight < float("inf"):
        raise ValueError(f"weight must be finite and not negative, not {weight}")
    return float(weight)
