"""Circuit breakers: one per replica, and the rules that hold for the pool of them.

A breaker keeps requests from a replica that fails them. Only hard failures count: what the client
did wrong, cancels and back-pressure are neutral. Half-open traffic is leased: one probe at a time,
with a timeout, so that a lost probe never leaves the breaker stuck. Reads no clock.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar


class Outcome(enum.Enum):
    """NEUTRAL says nothing of the replica's health: a 4xx, back-pressure (429, 503), a cancel."""

    SUCCESS = enum.auto()
    FAILURE = enum.auto()
    NEUTRAL = enum.auto()


class State(enum.Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """Opens when of at least `min_samples` in `window_s` less than `min_success` succeeded, or
    after `consecutive` failures in a row. Stays open for a uniformly random part ("full jitter")
    of `open_s`·2^n, n the openings since it last held for `forget_s`, at most `open_max_s`.
    """

    window_s: float = 10.0
    buckets: int = 10
    min_samples: int = 10
    min_success: float = 0.5
    consecutive: int = 5
    open_s: float = 1.0
    open_max_s: float = 60.0
    forget_s: float = 60.0
    probe_timeout_s: float = 10.0
    probe_successes: int = 3


class Permit:
    """Leave to send one request; its outcome is recorded once, later calls do nothing."""

    __slots__ = ("_breaker", "epoch", "probe")

    def __init__(self, breaker: Breaker, epoch: int, *, probe: bool) -> None:
        self._breaker: Breaker | None = breaker
        self.epoch, self.probe = epoch, probe

    def record(self, now: float, outcome: Outcome) -> State | None:
        """The new state if the outcome changed it. On CLOSED the caller begins slow start."""
        breaker, self._breaker = self._breaker, None
        return breaker.settle(self, outcome, now) if breaker is not None else None


class Breaker:
    """`closed` may be read without a call on the hot path; otherwise ask `ready(now)`.

    `may_open` lets the pool forbid an opening (the ejection cap); the breaker then stays closed
    and asks again at the next failure. An outcome counts only in the epoch (run of one state) in
    which its permit was given, so answers to requests from before an opening never close it.
    """

    __slots__ = (
        "_closed_at",
        "_failures",
        "_may_open",
        "_openings",
        "_policy",
        "_probe",
        "_probe_ends",
        "_random",
        "_state",
        "_streak",
        "_successes",
        "_tick",
        "_trials",
        "closed",
        "epoch",
        "opened",
        "reopens",
    )

    def __init__(
        self,
        policy: BreakerPolicy | None = None,
        rng: random.Random | None = None,
        may_open: Callable[[], bool] = lambda: True,
    ) -> None:
        self._policy, self._may_open = policy or BreakerPolicy(), may_open
        self._random = (rng or random.Random()).random
        self._state, self.closed = State.CLOSED, True
        self._successes = [0] * self._policy.buckets
        self._failures = [0] * self._policy.buckets
        self._tick = 0
        self._streak = self._trials = self._openings = self.epoch = self.opened = 0
        self._closed_at = float("-inf")
        self.reopens = 0.0  # when an open breaker becomes half-open
        self._probe: Permit | None = None
        self._probe_ends = 0.0

    # ------------------------------------------------------------------------------- decisions

    def state(self, now: float) -> State:
        self._advance(now)
        return self._state

    def ready(self, now: float) -> bool:
        """Whether `allow` would give a permit now."""
        if self.closed:
            return True
        self._advance(now)
        return self._state is State.HALF_OPEN and self._probe is None

    def allow(self, now: float, *, panic: bool = False) -> Permit | None:
        """Leave to send one request. In `panic` an open breaker lets everything through, and what
        it lets through serves as probes."""
        if self.closed:
            return Permit(self, self.epoch, probe=False)
        if self.ready(now):
            self._probe = Permit(self, self.epoch, probe=True)
            self._probe_ends = now + self._policy.probe_timeout_s
            return self._probe
        return Permit(self, self.epoch, probe=False) if panic else None

    def next_probe(self, now: float) -> float | None:
        """When it may next give a permit; None while closed."""
        self._advance(now)
        if self._state is State.CLOSED:
            return None
        if self._state is State.OPEN:
            return self.reopens
        return now if self._probe is None else self._probe_ends

    # -------------------------------------------------------------------------------- outcomes

    def settle(self, permit: Permit, outcome: Outcome, now: float) -> State | None:
        """What became of a permit; called by it, once."""
        self._advance(now)  # a probe that is late has failed already
        if permit is self._probe:
            self._probe = None
        if permit.epoch != self.epoch or outcome is Outcome.NEUTRAL:
            return None
        before = self._state
        if before is State.CLOSED:
            self._count(outcome, now)
        elif outcome is Outcome.SUCCESS:
            self._trials += 1
            if self._trials >= self._policy.probe_successes:
                self._close(now)
        elif permit.probe:
            self._open(now)
        return self._state if self._state is not before else None

    def success_rate(self, now: float) -> float:
        """Over the window; 1 where nothing was counted."""
        self._expire(now)
        good, bad = sum(self._successes), sum(self._failures)
        return good / (good + bad) if good + bad else 1.0

    def _count(self, outcome: Outcome, now: float) -> None:
        self._expire(now)
        slot = self._tick % self._policy.buckets
        if outcome is Outcome.SUCCESS:
            self._successes[slot] += 1
            self._streak = 0
            return
        self._failures[slot] += 1
        self._streak += 1
        bad = sum(self._failures)
        total = bad + sum(self._successes)
        policy = self._policy
        rate_low = total >= policy.min_samples and (total - bad) / total < policy.min_success
        if (rate_low or self._streak >= policy.consecutive) and self._may_open():
            if now - self._closed_at >= policy.forget_s:
                self._openings = 0
            self._open(now)

    def _expire(self, now: float) -> None:
        """Empty the buckets that time has passed."""
        policy = self._policy
        tick = int(now * policy.buckets / policy.window_s)
        if tick <= self._tick:
            return
        for passed in range(max(self._tick + 1, tick - policy.buckets + 1), tick + 1):
            slot = passed % policy.buckets
            self._successes[slot] = self._failures[slot] = 0
        self._tick = tick

    # ----------------------------------------------------------------------------- transitions

    def _advance(self, now: float) -> None:
        if self._state is State.OPEN and now >= self.reopens:
            self._enter(State.HALF_OPEN)
        elif self._probe is not None and now >= self._probe_ends:
            self._open(now)

    def _open(self, now: float) -> None:
        policy = self._policy
        bound = min(policy.open_max_s, policy.open_s * 2.0 ** min(self._openings, 32))
        self.reopens = now + bound * (1.0 - self._random())
        self._openings += 1
        self.opened += 1
        self._enter(State.OPEN)

    def _close(self, now: float) -> None:
        self._closed_at = now
        self._successes = [0] * self._policy.buckets
        self._failures = [0] * self._policy.buckets
        self._enter(State.CLOSED)

    def _enter(self, state: State) -> None:
        self._state, self.closed = state, state is State.CLOSED
        self._streak = self._trials = 0
        self._probe = None
        self.epoch += 1


class Ejection:
    """The cap: of a pool's breakers at most `max_share` may be other than closed at a time."""

    def __init__(self, max_share: float = 0.5) -> None:
        if not 0.0 <= max_share <= 0.5:
            raise ValueError(f"max_share must be from 0 to 0.5, not {max_share}")
        self._max_share = max_share
        self._members: dict[str, Breaker] = {}

    def add(
        self, name: str, policy: BreakerPolicy | None = None, rng: random.Random | None = None
    ) -> Breaker:
        """A breaker for a new member, in place of any former one of that name."""
        breaker = self._members[name] = Breaker(policy, rng, self._may_open)
        return breaker

    def remove(self, name: str) -> None:
        self._members.pop(name, None)

    def _may_open(self) -> bool:
        ejected = sum(not breaker.closed for breaker in self._members.values())
        return ejected + 1 <= self._max_share * len(self._members)


class Guarded(Protocol):
    @property
    def breaker(self) -> Breaker: ...


G = TypeVar("G", bound=Guarded)

PANIC_BELOW = 0.5  # Envoy's threshold: with fewer than half able to serve, distrust the verdicts


def usable(connected: Sequence[G], configured: int, now: float) -> tuple[Sequence[G], bool]:
    """The replicas that routing may choose from, and whether that is in panic.

    `connected`: those up and not drained, of `configured` in all. In panic their breakers are
    ignored: give `panic=True` to `allow`.
    """
    ready = [member for member in connected if member.breaker.closed or member.breaker.ready(now)]
    if len(ready) < PANIC_BELOW * configured and len(ready) < len(connected):
        return connected, True
    return ready, False
