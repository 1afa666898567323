"""The replicas of one model as its calls choose among them: who may have a call, and who gets it.

Owns the router, what is learned of the work, and the memory of prompts. It takes the leases and
gives them back; which calls wait is the pool's to know. Invariant: a replica is chosen only among
those that serve, hold the version, are on the track, and have room.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gateway.config import ModelConfig
from gateway.generation.attempt import Attempt
from gateway.generation.seen import Seen
from gateway.policy.breaker import Outcome, State, usable
from gateway.policy.prefix import PrefixMemory
from gateway.policy.routing import Router, make_router
from gateway.policy.tokens import TokenWork
from gateway.tracks import Tracks

if TYPE_CHECKING:
    from gateway.generation.call import LiveCall
    from gateway.replica import NativeReplica

# One that says that it is busy gets nothing for so long, unless there is no other.
BUSY_S = 0.5


class Seats:
    """`update` after every change of the replicas."""

    def __init__(self, config: ModelConfig, rng: random.Random) -> None:
        self._rng = rng
        self.work = TokenWork(float(config.generation.expected_tokens))
        self.serving: list[Seen] = []
        self.surfaces: frozenset[str] = frozenset()  # that any replica answers
        self._memory = PrefixMemory()
        self._seen: dict[str, Seen] = {}
        self._routing = config.routing
        self._router: Router = make_router(config.routing, rng)
        self._tracks = Tracks(config.canary)

    def reconfigure(self, config: ModelConfig) -> None:
        if config.routing != self._routing:
            self._routing, self._router = config.routing, make_router(config.routing, self._rng)
        self._tracks = Tracks(config.canary)
        self._tracks.update([seen.replica for seen in self.serving])

    def update(self, replicas: Sequence[NativeReplica], now: float) -> None:
        """The replicas, or what they say, changed."""
        known, self._seen = self._seen, {}
        for replica in replicas:
            seen = known.get(replica.name)
            if seen is None or seen.replica is not replica:
                seen = Seen(replica)
            self._seen[replica.name] = seen
            seen.heard(self.work, now)
        all_ = self._seen.values()
        self.serving = [each for each in all_ if each.replica.ready and each.replica.surfaces]
        # What was said last stays: a model is what it is while its replicas are away.
        said = {name for each in all_ for name in each.replica.surfaces}
        self.surfaces = frozenset(said) or self.surfaces
        self._tracks.update([each.replica for each in self.serving])

    @property
    def heard(self) -> bool:
        """Whether any replica has ever said what it is."""
        return any(seen.replica.status.kind for seen in self._seen.values())

    @property
    def compares(self) -> bool:
        """Whether versions are compared."""
        return self._tracks.channel is not None

    def place(self, call: LiveCall) -> None:
        """Put it on its track."""
        call.track = self._tracks.place(call.key.session, call.version)

    def holds(self, version: str) -> bool:
        return any(seen.replica.serves(version) for seen in self.serving)

    # ------------------------------------------------------------------------------- for one call

    def choose(self, call: LiveCall, now: float) -> Attempt | None:
        """Its next attempt; None: no replica that it may have has room."""
        able, panic = usable(self.serving, len(self._seen), now)
        able = [seen for seen in able if seen.takes(call.surface) and self._may(seen, call)]
        tried = call.tried
        for wanted in (
            [s for s in able if s.name not in tried and s.busy_until <= now],
            [s for s in able if s.name not in tried],
            [s for s in able if s.name not in tried[-1:]],
            able,
        ):
            free = [seen for seen in wanted if not seen.full]
            if free:
                return self._take(call, free, now, panic)
            if wanted and not tried:
                return None  # those that are not busy will be free again
        return None

    def _may(self, seen: Seen, call: LiveCall) -> bool:
        if call.version is not None:
            return seen.replica.serves(call.version)
        if not self._tracks.stands(call.track, None):
            self.place(call)
        return self._tracks.serves(seen.name, call.track)

    def _take(
        self, call: LiveCall, free: Sequence[Seen], now: float, panic: bool
    ) -> Attempt | None:
        held = self._memory.held(call.key.prefix) if call.key.prefix else {}
        spared = self.work.spared(held)
        cost = self.work.cost(call.estimate)
        for seen in free:
            seen.settle(now)
        key = call.key._replace(spared=spared) if spared else call.key
        chosen = self._router.choose(free, key, now, cost=cost)
        if chosen is None:
            return None
        permit = chosen.breaker.allow(now, panic=panic)
        if permit is None:
            return None  # its one probe is under way
        replica = chosen.replica
        # What is cached of it costs nothing, but some of every prompt is computed.
        lease = replica.calls.take(max(1.0, cost - spared.get(replica.name, 0.0)), now)
        self._router.sent(lease, call.key, now)
        self._memory.sent(call.key.prefix, lease)
        return Attempt(call, replica, lease, permit, now, held.get(replica.name, 0))

    def computed(self, call: LiveCall, attempt: Attempt) -> None:
        """The prompt is done; only the answer is still to come."""
        attempt.lease.reprice(self.work.weight * call.estimate.tokens_out)

    def give_back(self, call: LiveCall, attempt: Attempt, outcome: Outcome, now: float) -> None:
        replica = attempt.replica
        attempt.lease.release(now)
        if attempt.permit.record(now, outcome) is State.CLOSED:
            replica.recovered(now)
        seen = self._seen.get(replica.name)
        if seen is not None and attempt.load:
            seen.told(attempt.load, self.work, now)
        ok = outcome is Outcome.SUCCESS
        self._router.ended(attempt.lease, call.key, now, ok=ok)
        if ok:
            self.work.ended(call.estimate, call.usage, attempt.promised)
        replica.settled()

    def others(self, call: LiveCall, here: NativeReplica) -> int:
        """Replicas in use that have not failed it, beside the one that it was on."""
        tried = call.tried
        return sum(
            seen.replica is not here and seen.name not in tried and self._may(seen, call)
            for seen in self.serving
        )

    def busy(self, replica: NativeReplica, now: float) -> None:
        """It takes no more for a while."""
        seen = self._seen.get(replica.name)
        if seen is not None:
            seen.busy_until = now + BUSY_S
