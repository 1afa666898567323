"""A relayed request that may have a second attempt beside the first, where the first is slow.

Owns when it begins and which of the two goes on. Only requests that may be done twice have one.
Invariant: at most one attempt beside the transit's own; when the transit has an answer or an end,
there is none.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from gateway.policy.breaker import Outcome, Permit
from gateway.policy.hedging import Hedging
from gateway.policy.load import Lease
from gateway.relay.answering import CONNECTING, HEAD
from gateway.relay.arm import Arm
from gateway.relay.head import NO_BODY
from gateway.relay.sending import Sending

if TYPE_CHECKING:
    from gateway.lane import Exchange
    from gateway.relay.asked import Asked
    from gateway.relay.destination import Destination
    from gateway.relay.transit import Transit

# What models are asked for that generates nothing, by the last part of its path: dear enough to
# wait for, cheap enough to do twice.
SHORT = frozenset(
    {"embeddings", "rerank", "score", "classify", "pooling", "moderations", "tokenize"}
)


class Twofold(Sending):
    __slots__ = ("_arm", "_hedge", "lease", "permit")

    def __init__(
        self,
        destination: Destination,
        exchange: Exchange,
        asked: Asked,
        session: str | None,
        body: bytes,
        *,
        complete: bool,
    ) -> None:
        super().__init__(destination, exchange, asked, session, body, complete=complete)
        self.lease: Lease | None = None
        self.permit: Permit | None = None
        self._arm: Arm | None = None
        self._hedge: asyncio.TimerHandle | None = None

    def _give_back(self, outcome: Outcome) -> None:
        """The lease and permit of the transit's own attempt."""
        raise NotImplementedError

    def plan_hedge(self, hedging: Hedging, now: float) -> None:
        delay = hedging.delay(now)
        if self.pool.repeats and self._length != NO_BODY:
            # SDKs say of every generation that it is idempotent; it is dear all the same.
            fit = self.exchange.path.rpartition("/")[2] in SHORT
        else:
            fit = self.asked.idempotent
        if fit and self._complete and not self.asked.upgrade and delay is not None:
            self._hedge = self.pool.loop.call_later(delay, self._start_arm)

    def _start_arm(self) -> None:
        """The first is slow: ask a second replica, unless it has something better to do."""
        now = self.pool.loop.time()
        if self.phase not in (CONNECTING, HEAD) or self._arm is not None:
            return
        transit = cast("Transit", self)  # every one is
        found = self.pool.spare(transit, now)
        if found is None:
            return
        permit = found.breaker.allow(now)
        assert permit is not None  # it is closed
        lease = found.load.take(1.0, now)
        self.pool.router.sent(lease, self.key, now)
        self.pool.measures.hedged += 1
        self._arm = Arm(transit, found, lease, permit)
        self._arm.start(now)

    def arm_won(self, arm: Arm) -> None:
        """It answers before the first one does."""
        self._close_upstream()
        self._give_back(Outcome.NEUTRAL)
        self._adopt(arm)

    def arm_failed(self, arm: Arm, outcome: Outcome) -> None:
        self._arm = None
        arm.drop(outcome)

    def _adopt(self, arm: Arm) -> None:
        """The second attempt is the only one now."""
        self._arm = None
        arm.adopt()
        self._attempt += 1  # of the first, nobody waits for a connection any more
        self.replica, self.lease, self.permit = arm.replica, arm.lease, arm.permit
        self.connection, self.sent = arm.connection, arm.sent
        self.phase, self._moved, self._since = HEAD, True, self.pool.loop.time()

    def _drop_arm(self) -> None:
        if self._hedge is not None:
            self._hedge.cancel()
        if self._arm is not None:
            self.arm_failed(self._arm, Outcome.NEUTRAL)
