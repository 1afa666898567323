"""What the batching simulator is fed: service curves, arrival processes, and the load they make.

Pure functions of their seeds. Times are in seconds, loads are shares of the SLO-limited capacity
L1: the rate at which N coordinated replicas, each running the best batch that leaves its members
time to wait ℓ/N, neither idle nor miss.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from bench.sim.engine import stream

Curve = tuple[float, ...]  # seconds by batch size; index 0 is 0


def linear(fixed_ms: float, each_ms: float, largest: int) -> Curve:
    return (0.0, *((fixed_ms + each_ms * b) / 1e3 for b in range(1, largest + 1)))


def padded(fixed_ms: float, each_ms: float, largest: int) -> Curve:
    """Batches are padded to powers of two: a staircase."""
    sizes = [1 << (b - 1).bit_length() for b in range(1, largest + 1)]
    return (0.0, *((fixed_ms + each_ms * size) / 1e3 for size in sizes))


def knee(fixed_ms: float, each_ms: float, free: int, largest: int) -> Curve:
    """Up to `free` items cost nothing more than one: a device that is not yet full."""
    return (0.0, *((fixed_ms + each_ms * max(b - free, 0)) / 1e3 for b in range(1, largest + 1)))


@dataclass(frozen=True, slots=True)
class Cell:
    """One model on `replicas` replicas with the deadline `slo_s` on every request. `noise`: the
    coefficient of variation of a batch's time (lognormal)."""

    name: str
    curve: Curve
    slo_s: float
    replicas: int = 1
    bursty: bool = False
    noise: float = 0.0

    @property
    def largest(self) -> int:
        return len(self.curve) - 1

    @property
    def best(self) -> int:
        """b*: the most productive batch with (1 + 1/N) ℓ(b) within the deadline."""
        room = self.slo_s / (1.0 + 1.0 / self.replicas)
        fit = [b for b in range(1, self.largest + 1) if self.curve[b] <= room]
        return max(fit, key=lambda b: (b / self.curve[b], -b))

    @property
    def capacity(self) -> float:
        """L1, requests per second."""
        return self.replicas * self.best / self.curve[self.best]


def arrivals(cell: Cell, load: float, count: int, seed: int) -> list[float]:
    """`count` arrival times, of the mean rate `load` x capacity."""
    rate = load * cell.capacity
    rng = stream(seed, "arrivals", cell.name, cell.replicas, load)
    if not cell.bursty:
        return list(accumulate(rng.expovariate(rate) for _ in range(count)))
    # Two states, four times as fast in one as in the other, each held for ten deadlines on average.
    times: list[float] = []
    now, rates, state = 0.0, (0.4 * rate, 1.6 * rate), 0
    while len(times) < count:
        end = now + rng.expovariate(1.0 / (10.0 * cell.slo_s))
        while (now := now + rng.expovariate(rates[state])) < end:
            times.append(now)
        now, state = end, 1 - state
    return times[:count]
