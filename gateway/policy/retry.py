"""Retries: whether a request that failed may be tried again, where, and when.

Only before the first byte of an answer, within the pool's budget and the request's one deadline,
and never first on a replica that has failed it. A timeout is taken to mean that the replica is
still at work on the request: doing that work again elsewhere is the operator's choice, not ours.
Reads no clock.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar


class Named(Protocol):
    @property
    def name(self) -> str: ...


N = TypeVar("N", bound=Named)


class Failure(enum.Enum):
    """How an attempt ended. REFUSED: no replica began it (connection refused, draining). LOST: the
    connection broke. ERROR: a 5xx. BUSY: back-pressure. TIMEOUT: silence. FINAL: the request itself
    is at fault, or part of the answer has reached the client."""

    REFUSED = enum.auto()
    LOST = enum.auto()
    ERROR = enum.auto()
    BUSY = enum.auto()
    TIMEOUT = enum.auto()
    FINAL = enum.auto()


class RetryBudget:
    """Of a pool: over the last `window_s` at most `ratio` × requests + `floor` retries.

    Without it a struggling pool gets a multiple of its load. `floor` lets rare requests be retried.
    """

    def __init__(self, ratio: float = 0.2, floor: int = 3, window_s: float = 10.0) -> None:
        if ratio < 0 or floor < 0 or not window_s > 0:
            raise ValueError("ratio and floor must not be negative, window_s must be above 0")
        self._ratio, self._floor = ratio, floor
        self._width = window_s / _BUCKETS
        self._requests = [0] * _BUCKETS
        self._retries = [0] * _BUCKETS
        self._tick = 0

    def request(self, now: float) -> None:
        """A request came (not a retry)."""
        self._requests[self._slot(now)] += 1

    def left(self, now: float) -> int:
        self._slot(now)
        allowed = self._ratio * sum(self._requests) + self._floor
        return max(0, int(allowed) - sum(self._retries))

    def take(self, now: float) -> bool:
        """Spend one retry, if one is left."""
        if self.left(now) < 1:
            return False
        self._retries[self._slot(now)] += 1
        return True

    def _slot(self, now: float) -> int:
        tick = int(now / self._width)
        if tick > self._tick:
            for passed in range(max(self._tick + 1, tick - _BUCKETS + 1), tick + 1):
                self._requests[passed % _BUCKETS] = self._retries[passed % _BUCKETS] = 0
            self._tick = tick
        return self._tick % _BUCKETS


_BUCKETS = 10  # the window slides in tenths


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """`retries`: attempts after the first. `after_timeout`: also repeat what may still be running.
    `elapsed_share`: past this share of the time to the deadline nothing is tried again, for it
    would not be ready. `backoff_s`: mean wait once every replica has failed the request; doubles,
    at most `backoff_max_s`. Another replica is tried at once."""

    retries: int = 2
    after_timeout: bool = False
    elapsed_share: float = 0.75
    backoff_s: float = 0.05
    backoff_max_s: float = 2.0


class Attempts:
    """The attempts of one request. `tried`: the replicas that have failed it, oldest first."""

    __slots__ = ("_budget", "_deadline", "_policy", "_random", "_started", "tried")

    def __init__(
        self,
        policy: RetryPolicy,
        budget: RetryBudget,
        now: float,
        deadline: float,
        rng: random.Random,
    ) -> None:
        self._policy, self._budget, self._random = policy, budget, rng.random
        self._started, self._deadline = now, deadline
        self.tried: list[str] = []
        budget.request(now)

    def failed(
        self, replica: str, why: Failure, now: float, others: int, *, dead: bool = False
    ) -> float | None:
        """Seconds until the next attempt may begin, or None: give up. `others`: replicas in use
        that have not been tried. Spends from the budget when it says yes, but not where the replica
        is `dead`: what it had works no more, so placing it elsewhere adds no load to the pool."""
        policy = self._policy
        self.tried.append(replica)
        if why is Failure.FINAL or (why is Failure.TIMEOUT and not policy.after_timeout):
            return None
        if len(self.tried) > policy.retries:
            return None
        wait = 0.0 if others else self._backoff()
        if now + wait > self._started + policy.elapsed_share * (self._deadline - self._started):
            return None
        return wait if dead or self._budget.take(now) else None

    def among(self, candidates: Sequence[N]) -> Sequence[N]:
        """The candidates that have not failed it; if all have, those that did not do so last."""
        if not self.tried:
            return candidates
        fresh = [c for c in candidates if c.name not in self.tried]
        if not fresh:
            fresh = [c for c in candidates if c.name != self.tried[-1]]
        return fresh or candidates

    def _backoff(self) -> float:
        policy = self._policy
        bound = min(policy.backoff_max_s, policy.backoff_s * 2.0 ** len(self.tried))
        return bound * self._random()
