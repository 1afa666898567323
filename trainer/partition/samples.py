"""How many samples of a batch each rank gets, by its measured speed.

Owns the choice: the rank that is done last is done as early as can be. Pure. Invariant: the shares
sum to the batch, whatever the speeds, so the data stays sample-exact; each rank has at least one.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import accumulate


def shares(total: int, speeds: Sequence[float]) -> tuple[int, ...]:
    """Samples of each rank; `speeds` in samples a second. Optimal: each next sample goes to where
    it would be done first. Raises ValueError where there are fewer samples than ranks."""
    if total < len(speeds):
        raise ValueError(f"{total} samples for {len(speeds)} ranks")
    whole = sum(speeds)
    # All of these are certain, so that only the last few are dealt out one by one.
    counts = [max(1, int(total * speed / whole) - 1) for speed in speeds]
    counts = counts if sum(counts) <= total else [1] * len(speeds)
    waiting = [
        ((count + 1) / v, rank) for rank, (count, v) in enumerate(zip(counts, speeds, strict=True))
    ]
    heapq.heapify(waiting)
    for _ in range(total - sum(counts)):
        _, rank = waiting[0]
        counts[rank] += 1
        heapq.heapreplace(waiting, ((counts[rank] + 1) / speeds[rank], rank))
    return tuple(counts)


def last_done(counts: Sequence[int], speeds: Sequence[float]) -> float:
    """Seconds until every rank is done."""
    return max(count / speed for count, speed in zip(counts, speeds, strict=True))


def reshare(
    current: Sequence[int], speeds: Sequence[float], worth: float
) -> tuple[int, ...] | None:
    """Other shares, if they are done earlier by the part `worth` at least; else None."""
    found = shares(sum(current), speeds)
    better = last_done(found, speeds) <= (1 - worth) * last_done(current, speeds)
    return found if better else None


def cuts(counts: Sequence[int]) -> tuple[int, ...]:
    """Where each rank's samples begin, and the end of the last one's."""
    return (0, *accumulate(counts))
