"""Session routing: weighted rendezvous hashing with bounded load. No state, so nothing to agree on.

Every worker, on every host and after every restart, ranks the replicas of a session alike: the
ranking is a function of the session's key and the replicas' names and weights alone. A change of
the fleet moves only the sessions that it must. A session leaves its replica only while that has
more than its bound, and then always for the same next one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from hashlib import blake2b
from math import log

from gateway.policy.bounds import Limits, LoadBound
from gateway.policy.candidate import NO_KEY, C, RoutingKey, Unlearned
from gateway.policy.leastwork import WeightedLeastConnections

_MASK = (1 << 64) - 1
# Odd multipliers of splitmix64 and of Lemire's 64-bit mixer; any with well spread bits would do,
# but they are part of what workers agree on: changing one moves every session of a running fleet.
_MIX_A, _MIX_B = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93
_LOG_RANGE = 64 * log(2.0)
_MEMO = 8192  # rankings remembered; clients fill this, so it is emptied when full


def digest(key: str) -> int:
    """64 bits of a key, equal on every machine (Python's own `hash` is not)."""
    data = key.encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


class Rendezvous:
    """Ranks a fixed list of candidates for a key: by ln(h(key, name)) / weight, highest first.

    h is uniform on (0, 1], so each is first for a share of the keys proportional to its weight
    (Schindelhauer and Schomaker's logarithmic method), and taking one away or lowering its weight
    moves only keys of its own. Those of weight 0 are never ranked.
    """

    def __init__(self, names: Sequence[str], weights: Sequence[float]) -> None:
        self._nodes = [
            (index, digest(name), 1.0 / weight)
            for index, (name, weight) in enumerate(zip(names, weights, strict=True))
            if weight > 0.0
        ]

    def ranked(self, key: str) -> list[int]:
        """Places in the list, home first, then where the key goes while home cannot take it."""
        point, scored = digest(key), []
        for index, seed, inverse in self._nodes:
            mixed = ((point ^ seed) * _MIX_A) & _MASK
            mixed = ((mixed ^ (mixed >> 32)) * _MIX_B) & _MASK
            scored.append(((log((mixed ^ (mixed >> 32)) + 1) - _LOG_RANGE) * inverse, -index))
        scored.sort(reverse=True)
        return [-place for _, place in scored]


class SessionRouter(Unlearned):
    """The first in rendezvous order that is within its bound; all past it: where work is least.

    Ranking goes by configured weight, the bound by share: slow start, which passes, lowers the
    bound and moves nobody's home. A request without a session goes where the work is least.
    """

    def __init__(self, rng: random.Random | None = None, bound: LoadBound | None = None) -> None:
        self._bound = bound or LoadBound()
        self._least_work = WeightedLeastConnections(rng)
        self._fleet: Sequence[object] = ()
        self._weights: list[float] = []
        self._rendezvous = Rendezvous((), ())
        self._memo: dict[str, list[int]] = {}

    def choose(
        self, candidates: Sequence[C], request: RoutingKey, now: float, *, cost: float = 1.0
    ) -> C | None:
        if request.session is None:
            return self._least_work.choose(candidates, request, now, cost=cost)
        limits = self._bound.limits(candidates, now, cost)
        return limits and self.place(request.session, candidates, limits, now)

    def place(self, key: str, candidates: Sequence[C], limits: Limits, now: float) -> C | None:
        """Where this key belongs, within these limits."""
        for index in self._ranked(key, candidates):
            candidate = candidates[index]
            if limits.admit(candidate):
                return candidate
        return self._least_work.choose(candidates, NO_KEY, now, cost=limits.cost)

    def _ranked(self, session: str, candidates: Sequence[C]) -> list[int]:
        """The ranking, remembered for as long as the fleet is the same."""
        weights = [candidate.weight for candidate in candidates]
        if weights != self._weights or self._fleet != candidates:
            self._fleet, self._weights = candidates[:], weights
            self._rendezvous = Rendezvous([c.name for c in candidates], weights)
            self._memo = {}
        ranked = self._memo.get(session)
        if ranked is None:
            if len(self._memo) >= _MEMO:
                self._memo.clear()
            ranked = self._memo[session] = self._rendezvous.ranked(session)
        return ranked
