"""L2: what the best batcher of one replica would reach on a trace whose future it knows.

Exact, by dynamic programming. With one deadline for all, batches of consecutive requests lose
nothing: a skipped request can take the place of a batch's first one, which only moves the deadline
back. Sizes up to where ℓ(b) fits the deadline; deterministic service times.
"""

from __future__ import annotations

from collections.abc import Sequence

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
