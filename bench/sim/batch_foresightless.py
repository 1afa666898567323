"""L3: the goodput of the best batcher of one replica that does not know the future.

Average-reward value iteration for Poisson arrivals of known rate over (queue length, age of the
head), the other ages at their means, which flatters it slightly. Actions: run the b oldest, give up
the head, wait one step. What a sweep needs and the values do not change is made once: the chances
of arrivals during each batch, and between which points of the grid each age lies.
"""

from __future__ import annotations

from math import lgamma

import numpy as np
from numpy.typing import NDArray

from bench.sim.batch_workload import Curve

Array = NDArray[np.float64]
Places = NDArray[np.int_]


def foresightless(
    rate: float, curve: Curve, slo_s: float, *, ages: int = 50, sweeps: int = 400
) -> float:
    """As a share of what arrives."""
    largest = max((b for b in range(1, len(curve)) if curve[b] <= slo_s), default=0)
    if not largest:
        return 0.0
    step = slo_s / ages
    most = int(min(rate * slo_s * 1.1 + 4.0 * (rate * slo_s) ** 0.5 + 2.0, 3.0 * largest + 20.0))
    most = max(most, largest + 1)
    grid: Array = np.arange(ages + 1, dtype=np.float64) * step
    runs = [_Run(b, curve[b], rate, slo_s, grid, most) for b in range(1, largest + 1)]
    runs = [run for run in runs if run.width]
    tick = _poisson(rate * step, most)
    older = [_place(grid * (n - 1) / n, grid) for n in range(1, most + 1)]
    too_old = grid + step + curve[1] > slo_s
    value = np.zeros((most + 1, ages + 1))
    gain = 0.95 * rate
    history: list[float] = []
    for _ in range(sweeps):
        # One column more: what is older than the grid counts as its oldest.
        wide = np.pad(value, ((0, 0), (0, ages + 2)), mode="edge")
        new = tick @ wide[:, 1 : ages + 2] - gain * step
        new[:, too_old] = -np.inf
        for run in runs:
            run.improve(new, wide, gain)
        new[0] = value[1, 0] - gain / rate
        for n, (low, share) in enumerate(older, 1):
            given_up = new[n - 1, low] * (1.0 - share) + new[n - 1, low + 1] * share
            np.maximum(new[n], given_up, out=new[n])
        drift = new[0, 0]
        value = 0.5 * value + 0.5 * (new - drift)  # half steps: the chain may be periodic
        gain += 0.3 * drift / (1.0 / rate + slo_s)
        history.append(gain)
        if len(history) > 40 and np.ptp(history[-20:]) < 2e-5 * rate:
            break
    return min(float(np.mean(history[-20:])) / rate, 1.0)


class _Run:
    """The action "run the `size` oldest" in every state that allows it: the head's ages up to
    `width` points of the grid, `size` or more waiting."""

    def __init__(
        self, size: int, seconds: float, rate: float, slo_s: float, grid: Array, most: int
    ) -> None:
        self._size, self._seconds = size, seconds
        self.width = int(np.count_nonzero(grid + seconds <= slo_s + 1e-12))
        left = np.arange(most - size + 1)  # behind after the batch
        self._fall = _poisson(rate * seconds, most)[: len(left)]
        step = grid[1]
        self._shift, self._part = int(seconds / step), seconds / step % 1.0
        low, self._share = _place(grid[: self.width] * (left / (left + size))[:, None], grid)
        self._columns = self.width + 1  # of what is behind, by the age of its first
        self._low = left[:, None] * self._columns + low
        # When nobody is left, the head is who came during the batch.
        came = np.arange(most + 1)
        fresh, self._fresh_share = _place(seconds * came / (came + 1.0), grid)
        self._fresh = came, fresh

    def improve(self, new: Array, wide: Array, gain: float) -> None:
        """Where running is worth more than what `new` has, put it there."""
        start, end = self._shift, self._shift + self._columns
        later = wide[:, start:end] * (1.0 - self._part)
        later += wide[:, start + 1 : end + 1] * self._part
        after = self._fall @ later
        rows, low = self._fresh
        share = self._fresh_share
        fresh = wide[rows, low] * (1.0 - share) + wide[rows, low + 1] * share
        after[0] = self._fall[0] @ fresh
        flat = after.ravel()
        found = flat.take(self._low) * (1.0 - self._share)
        found += flat.take(self._low + 1) * self._share
        found += self._size - gain * self._seconds
        better = new[self._size :, : self.width]
        np.maximum(better, found, out=better)


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


def _place(ages: Array, grid: Array) -> tuple[Places, Array]:
    """Of each age, the point of the grid before it, and how far it is on the way to the next."""
    place = np.clip(ages / grid[1], 0.0, len(grid) - 1 - 1e-9)
    low = place.astype(int)
    return low, place - low
