"""Weighted least-connections by predicted work: the default router."""

from __future__ import annotations

import random
from collections.abc import Sequence

from gateway.policy.candidate import C, RoutingKey, Unlearned


class WeightedLeastConnections(Unlearned):
    """Least `(work + cost) / share`, where share is weight × slow start × health.

    Counting the request's own cost sends it to the fastest of the idle ones, and counting what a
    replica would be spared of it to one that holds its prompt, while that is worth the wait. Ties
    are broken at random: with a fixed order, workers that share replicas would all herd to the
    first.
    """

    def __init__(self, rng: random.Random | None = None) -> None:
        self._random = (rng or random.Random()).random

    def choose(
        self, candidates: Sequence[C], request: RoutingKey, now: float, *, cost: float = 1.0
    ) -> C | None:
        best, lowest, ties = None, float("inf"), 1
        spared = request.spared
        for candidate in candidates:
            if candidate.ramping:
                candidate.refresh(now)
            share = candidate.share
            if share <= 0.0:
                continue
            score = (candidate.work + cost) / share
            if spared:
                score -= spared.get(candidate.name, 0.0) / share
            if score < lowest:
                best, lowest, ties = candidate, score, 1
            elif score == lowest:
                ties += 1
                if self._random() * ties < 1.0:
                    best = candidate
        return best
