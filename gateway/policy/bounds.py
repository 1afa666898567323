"""The bound on load that affinity must respect: what a replica may hold and still be preferred.

Affinity without it fills one replica while others idle. Pure arithmetic over the candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gateway.policy.candidate import C


class Limits(NamedTuple):
    """At one moment, for one request's cost."""

    per_share: float
    per_slot: float
    cost: float

    def admit(self, candidate: C) -> bool:
        """Whether it may take the request and stay within its bound."""
        share = candidate.share
        most = share * self.per_share + self.per_slot * max(2, candidate.slots)
        return share > 0.0 and candidate.work + self.cost <= most


class LoadBound:
    """`factor` × the fair part of all work, plus `slack` typical requests per slot, of two slots at
    least: so one request against none is never too many. Reads shares, so slow start lowers it."""

    def __init__(self, factor: float = 1.25, slack: float = 1.0) -> None:
        if factor < 1.0 or slack < 0.0:
            raise ValueError("factor must be at least 1 and slack not negative")
        self._factor, self._slack = factor, slack
        self._typical = 0.0  # cost of a request, a slow average

    def limits(self, candidates: Sequence[C], now: float, cost: float) -> Limits | None:
        """None when no candidate has any share. Brings their shares up to date."""
        if not self._typical:
            self._typical = cost  # the average starts at the first request, not at nothing
        typical = self._typical = self._typical + (cost - self._typical) * 0.01
        work = shares = 0.0
        for candidate in candidates:
            if candidate.ramping:
                candidate.refresh(now)
            share = candidate.share
            if share > 0.0:
                shares += share
                work += candidate.work
        if shares <= 0.0:
            return None
        return Limits(self._factor * (work + cost) / shares, self._slack * typical, cost)
