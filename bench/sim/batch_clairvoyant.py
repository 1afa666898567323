"""What the best possible batcher would reach on one replica: the yardsticks of the simulator.

* `clairvoyant` (L2): exact, by dynamic programming over one trace whose future is known. With one
  deadline for all, batches of consecutive requests lose nothing: a skipped request can take the
  place of a batch's first one, which only moves the deadline back.
* `foresightless` (L3): value iteration for Poisson arrivals of known rate over (queue length, age
  of the head), the other ages at their means, which flatters it slightly.

Sizes up to where ℓ(b) fits the deadline; deterministic service times.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import lgamma

import numpy as np
from numpy.typing import NDArray

from bench.sim.batch_workload import Curve

Array = NDArray[np.float64]

_WIDTH = 64  # columns of the first attempt; doubled when a state falls off the edge


def clairvoyant(times: Sequence[float], curve: Curve, slo_s: float) -> int:
    """How many requests can be served in time at most."""
    arrived = np.asarray(times, dtype=np.float64)
    width = _WIDTH
    while (served := _attempt(arrived, curve, slo_s, width)) is None:
        width *= 2
    return served


def _attempt(arrived: Array, curve: Curve, slo_s: float, width: int) -> int | None:
    """F[i][d]: when the replica is free at the earliest, if d of the first i were not served.

    F[i][d] = min(F[i-1][d-1], min over b of max(F[i-b][d], a_i) + ℓ(b)), where the batch of
    requests i-b+1 … i must end by a_{i-b+1} + S. Columns d stand relative to a base that rises.
    """
    largest = max((b for b in range(1, len(curve)) if curve[b] <= slo_s), default=0)
    if not largest:
        return 0
    seconds = np.asarray(curve[1 : largest + 1])[:, None]
    back = np.arange(1, largest + 1)
    rows = largest + 1  # a ring: row i mod rows
    free = np.full((rows, width), np.inf)
    free[0, 0] = 0.0
    base, count = 0, len(arrived)
    for i in range(1, count + 1):
        fits = min(largest, i)
        ends = np.maximum(free[(i - back[:fits]) % rows], arrived[i - 1]) + seconds[:fits]
        limit = arrived[i - fits : i][::-1] + slo_s
        ends[ends > limit[:, None] + 1e-12] = np.inf
        row = ends.min(axis=0)
        np.minimum(row[1:], free[(i - 1) % rows][:-1], out=row[1:])
        if i < count:
            idle = np.flatnonzero(row <= arrived[i])
            if len(idle):
                row[idle[0] + 1 :] = np.inf  # free in time already: more drops gain nothing
            elif row[-1] < np.inf:
                return None
        free[i % rows] = row
        if i % 8 == 0:
            shift = int(np.argmax(np.isfinite(free).any(axis=0)))
            if shift:
                free[:, :-shift] = free[:, shift:]
                free[:, -shift:] = np.inf
                base += shift
    return count - base - int(np.argmax(np.isfinite(free[count % rows])))


def foresightless(
    rate: float, curve: Curve, slo_s: float, *, ages: int = 50, sweeps: int = 400
) -> float:
    """The goodput, as a share of what arrives, of the best policy that does not know the future.

    Average-reward value iteration; actions: run the b oldest, give up the head, wait one step.
    """
    largest = max((b for b in range(1, len(curve)) if curve[b] <= slo_s), default=0)
    if not largest:
        return 0.0
    step = slo_s / ages
    most = int(min(rate * slo_s * 1.1 + 4.0 * (rate * slo_s) ** 0.5 + 2.0, 3.0 * largest + 20.0))
    most = max(most, largest + 1)
    seconds = np.asarray(curve[1 : largest + 1])
    grid = np.arange(ages + 1) * step
    fall = [_poisson(rate * time, most) for time in seconds]
    tick = _poisson(rate * step, most)
    sizes = np.arange(most + 1)
    value = np.zeros((most + 1, ages + 1))
    gain = 0.95 * rate
    history: list[float] = []
    for _ in range(sweeps):
        after = np.empty((largest, most + 1, ages + 1))  # by b, left behind, age of the first left
        for b, time in enumerate(seconds, 1):
            after[b - 1] = fall[b - 1] @ _at(value, grid + time, step)
            fresh = _at_each(value, sizes, time * sizes / (sizes + 1.0), step)
            after[b - 1, 0, :] = fall[b - 1][0] @ fresh
            after[b - 1] += b - gain * time
        waited = tick @ _at(value, grid + step, step) - gain * step
        waited[:, grid + step + seconds[0] > slo_s] = -np.inf
        new = np.empty_like(value)
        new[0] = value[1, 0] - gain / rate
        for n in range(1, most + 1):
            fits = min(n, largest)
            left = n - np.arange(1, fits + 1)
            ages_left = grid[None, :] * (left / n)[:, None]
            run = _at_each(after[np.arange(fits), left], None, ages_left, step)
            run[grid[None, :] + seconds[:fits, None] > slo_s + 1e-12] = -np.inf
            given_up = _at_each(new[n - 1][None, :], None, (grid * (n - 1) / n)[None, :], step)[0]
            new[n] = np.maximum(np.maximum(run.max(axis=0), waited[n]), given_up)
        drift = new[0, 0]
        value = 0.5 * value + 0.5 * (new - drift)  # half steps: the chain may be periodic
        gain += 0.3 * drift / (1.0 / rate + slo_s)
        history.append(gain)
        if len(history) > 40 and np.ptp(history[-20:]) < 2e-5 * rate:
            break
    return min(float(np.mean(history[-20:])) / rate, 1.0)


def _poisson(mean: float, most: int) -> Array:
    """[k, n]: the chance that a queue of k has grown to n; n = most stands for more as well."""
    counts = np.arange(most + 1)
    logs = counts * np.log(mean) - mean - np.array([lgamma(c + 1.0) for c in counts])
    chances = np.exp(logs)
    matrix = np.zeros((most + 1, most + 1))
    for k in range(most + 1):
        matrix[k, k:] = chances[: most + 1 - k]
        matrix[k, most] += max(0.0, 1.0 - matrix[k].sum())
    return matrix


def _at(value: Array, ages: Array, step: float) -> Array:
    """Every row of `value` at these ages, between the grid's points."""
    place = np.clip(ages / step, 0.0, value.shape[1] - 1 - 1e-9)
    low = place.astype(int)
    share = place - low
    return value[:, low] * (1.0 - share) + value[:, low + 1] * share


def _at_each(value: Array, rows: NDArray[np.int_] | None, ages: Array, step: float) -> Array:
    """Each row of `value` at its own ages."""
    place = np.clip(ages / step, 0.0, value.shape[1] - 1 - 1e-9)
    low = place.astype(int)
    share = place - low
    if rows is None:
        rows = np.arange(len(value))[:, None]
    return value[rows, low] * (1.0 - share) + value[rows, low + 1] * share
