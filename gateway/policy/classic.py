"""The classic routers: by turns, by chance, the better of two, and the fewest requests.

They need weights and counts only. Kept for pools whose operators want them and as a yardstick for
the default. All take a candidate's share, so that drains and slow start bear on them too.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from gateway.policy.candidate import C, RoutingKey, Unlearned


def shares(candidates: Sequence[C], now: float) -> list[float]:
    """Every candidate's share, brought up to date."""
    for candidate in candidates:
        if candidate.ramping:
            candidate.refresh(now)
    return [candidate.share for candidate in candidates]


class WeightedRoundRobin(Unlearned):
    """By turns in proportion to share, as evenly spread as can be (nginx's smooth form)."""

    def __init__(self, rng: random.Random | None = None) -> None:
        # Workers begin at different places in the turn: in step, they would hit one replica each.
        self._random = (rng or random.Random()).random
        self._credit: dict[str, float] = {}

    def choose(
        self, candidates: Sequence[C], request: RoutingKey, now: float, *, cost: float = 1.0
    ) -> C | None:
        credit, total = self._credit, 0.0
        best, highest = None, float("-inf")
        for candidate, share in zip(candidates, shares(candidates, now), strict=True):
            if share <= 0.0:
                continue
            total += share
            name = candidate.name
            before = credit.get(name)
            if before is None:
                before = self._random() * share
            now_has = credit[name] = before + share
            if now_has > highest:
                best, highest = candidate, now_has
        if best is not None:
            credit[best.name] = highest - total
            if len(credit) > 2 * len(candidates) + 16:  # members that were removed
                self._credit = {c.name: credit[c.name] for c in candidates if c.name in credit}
        return best


class WeightedRandom(Unlearned):
    """By chance, in proportion to share."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()

    def choose(
        self, candidates: Sequence[C], request: RoutingKey, now: float, *, cost: float = 1.0
    ) -> C | None:
        place = _draw(shares(candidates, now), self._rng)
        return None if place is None else candidates[place]


class PowerOfTwo(Unlearned):
    """Two drawn in proportion to share, then the one with the lower `(work + cost) / share`.

    For very many replicas, or many workers with views out of date, where all would herd to the
    least loaded.
    """

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()

    def choose(
        self, candidates: Sequence[C], request: RoutingKey, now: float, *, cost: float = 1.0
    ) -> C | None:
        weights = shares(candidates, now)
        place = _draw(weights, self._rng)
        if place is None:
            return None
        first, weights[place] = candidates[place], 0.0
        place = _draw(weights, self._rng)
        if place is None:
            return first
        second = candidates[place]
        a, b = (first.work + cost) / first.share, (second.work + cost) / second.share
        return first if a <= b else second


class LeastConnections(Unlearned):
    """Fewest requests in flight, whatever the weight or the work; ties at random."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._random = (rng or random.Random()).random

    def choose(
        self, candidates: Sequence[C], request: RoutingKey, now: float, *, cost: float = 1.0
    ) -> C | None:
        best, fewest, ties = None, float("inf"), 1
        for candidate in candidates:
            if candidate.share <= 0.0:
                continue
            if candidate.in_flight < fewest:
                best, fewest, ties = candidate, candidate.in_flight, 1
            elif candidate.in_flight == fewest:
                ties += 1
                if self._random() * ties < 1.0:
                    best = candidate
        return best


def _draw(weights: Sequence[float], rng: random.Random) -> int | None:
    """A place, with the probability of its weight."""
    total = sum(weights)
    if total <= 0.0:
        return None
    point, drawn = rng.random() * total, 0
    for place, weight in enumerate(weights):
        if weight > 0.0:
            drawn = place  # rounding may leave the point a hair above the last bound
            point -= weight
            if point < 0.0:
                break
    return drawn
