"""One model of http replicas in one worker: who gets the next request, who waits, what is counted.

Owns the model's transits and its queue; each transit owns its own way. Invariants: a transit that
entered leaves once; accepted = done + failed + cancelled + live; the queue is bounded, and what
waits in it is looked at whenever a replica may have become free.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from gateway.config import ModelConfig
from gateway.errors import GatewayError, NoReplica, Shed
from gateway.http_choosing import HttpChoosing
from gateway.http_replica import HttpReplica
from gateway.measures import Family, Measures
from gateway.policy.arrivals import ArrivalRate
from gateway.policy.breaker import Ejection, Outcome, Permit, State
from gateway.policy.concurrency import ConcurrencyLimit, RecentLeast, crowd_of
from gateway.policy.fairness import FairQueue, Waiting
from gateway.policy.hedging import Hedging
from gateway.policy.load import Lease
from gateway.policy.retry import Attempts, RetryBudget, RetryPolicy
from gateway.policy.routing import NO_KEY, RoutingKey
from gateway.relay.answering import BODY, FIRST, HEAD, SEATING, TUNNEL
from gateway.relay.transit import TUNNEL_IDLE_S

if TYPE_CHECKING:
    from gateway.relay.inquest import Loss
    from gateway.relay.transit import Transit

# Deadlines and silences are looked at so often; they may pass by so much.
TICK_S = 0.05
# More for each live transit, so that looking at ten thousand takes a few percent of a core.
LOOK_S = 20e-6
# With a ready replica this recently, requests wait for one: a killed server is back within its
# start-up time. After it, and before the first was ready, the answer is 503.
FAILOVER_S = 30.0
# One look at the queue tries so many: behind those that wait for one replica others may be served.
LOOKED_AT = 64


class HttpPool(HttpChoosing):
    """`replicas` is the fleet's to fill; it calls `changed` after every change."""

    kind = "http"

    def __init__(
        self,
        config: ModelConfig,
        *,
        loop: asyncio.AbstractEventLoop,
        rng: random.Random,
        weight: Callable[[str], float] = lambda tenant: 1.0,
    ) -> None:
        super().__init__(config, rng)
        self.loop = loop
        self.ejection = Ejection()
        self.measures = Measures()
        self.ready = False
        self.crowd: ConcurrencyLimit | None = None
        self._quickest = RecentLeast()
        self._budget = RetryBudget()
        self._live: set[Transit] = set()
        self._waiting: FairQueue[Transit] = FairQueue(config.max_queue, weight)
        self._departures = ArrivalRate()
        self._unserved_since = float("-inf")
        self._tick: asyncio.TimerHandle | None = None
        self._due = self._pumping = False
        self._tolerance: float | None = None
        self._hedged: float | None = None
        self.hedging: Hedging | None = None
        self.config: ModelConfig
        self.reconfigure(config)

    def reconfigure(self, config: ModelConfig) -> None:
        self.config, relay = config, config.relay
        self._waiting.capacity = config.max_queue
        self.route_by(config)
        self._policy = RetryPolicy(retries=config.retries)
        if config.hedge != self._hedged:
            self._hedged = config.hedge
            self.hedging = None if config.hedge is None else Hedging(max_extra=config.hedge)
        if config.adaptive_limit != self._tolerance:
            self._tolerance = config.adaptive_limit
            self.crowd = crowd_of(self._tolerance)
        # Whether any request may be repeated: inference changes nothing; an application might.
        self.repeats = relay.api == "openai"
        self.heartbeat_s = relay.heartbeat_ms / 1e3
        longest = float("inf")
        self.limits = {
            HEAD: longest if relay.head_ms is None else relay.head_ms / 1e3,
            FIRST: longest if relay.first_ms is None else relay.first_ms / 1e3,
            BODY: relay.idle_ms / 1e3,
            TUNNEL: TUNNEL_IDLE_S,
        }

    # --------------------------------------------------------------------------- for its transits

    def entered(self, transit: Transit, now: float) -> None:
        self.measures.accepted += 1
        self._live.add(transit)
        if self._tick is None:
            self._tick = self.loop.call_later(TICK_S, self._on_tick)

    def spare(self, transit: Transit, now: float) -> HttpReplica | None:
        """A replica for its second attempt: one that is well, has room, and whom nobody waits for;
        the budget has been charged."""
        if len(self._waiting) or self.hedging is None:
            return None
        fit = [
            r.load
            for r in self._serving
            if r is not transit.replica
            and r.name not in transit.tried
            and r.breaker.closed
            and self.inquest.admits(r)
            and r.busy_until <= now
            and r.load.in_flight < r.limit
        ]
        # Not by the session: its own replica is the one that is slow.
        chosen = self.router.choose(fit, NO_KEY, now) if fit else None
        if chosen is None or not self.hedging.take(now):
            return None
        return self._by_load[chosen]

    def squeeze(self, transit: Transit, now: float) -> GatewayError | None:
        """Let it in, or say that it is one too many. Only where there is a limit."""
        crowd = self.crowd
        assert crowd is not None
        if crowd.take():
            transit.hold = crowd
            return None
        return Shed(
            f"model {self.name!r}: {crowd.limit} requests are in flight, as many as it answers "
            "without keeping them waiting",
            retry_after=self._drained_in(now),
        )

    def heard(self, transit: Transit) -> None:
        """Its answer begins. How much longer that took than of the quickest ones, and the time
        in our queue, is what it waited. Only where there is a limit."""
        now = self.loop.time()
        took = now - transit.sent
        quickest = self._quickest.observe(now, took)
        if self.crowd is not None:
            self.crowd.observe(now, transit.sent - transit.began + took - quickest, quickest)

    def attempts(self, now: float, deadline: float) -> Attempts:
        return Attempts(self._policy, self._budget, now, deadline, self._rng)

    def seat(self, transit: Transit, now: float) -> HttpReplica | GatewayError | None:
        """A replica for it; None: it waits, and `seek` is called again; or why there is none."""
        if transit.suspect:
            return self._seat_alone(transit, now)
        if len(self._waiting) and not self._pumping:
            self._pump_soon()  # it queues with those that came before
        elif (found := self._choose(transit.key, transit.tried, now)) is not None:
            return found
        if not self._serving and now - self._unserved_since > FAILOVER_S:
            return NoReplica(self.reason(), retry_after=1.0)
        if self._pumping:
            return None  # its place is kept
        shed = self._waiting.push(transit, transit.tenant, 1.0, priority=transit.priority)
        if shed is None:
            return None
        full = self._full(now)
        if shed is transit:
            return full
        shed.abandon(full)
        return None

    def _seat_alone(self, transit: Transit, now: float) -> HttpReplica | GatewayError | None:
        """As `seat`, for one that may have killed a replica."""
        if not self._serving and now - self._unserved_since > FAILOVER_S:
            return NoReplica(self.reason(), retry_after=1.0)
        if self.inquest.waiting >= self._waiting.capacity:
            return self._full(now)
        able = [replica for replica in self._able(now) if replica.busy_until <= now]
        found = self.inquest.seat(transit, able)
        if found is not None:
            self.inquest.sent(transit, found, now)
        return found

    def _full(self, now: float) -> Shed:
        return Shed(f"model {self.name!r}: its queue is full", retry_after=self._drained_in(now))

    def _drained_in(self, now: float) -> float | None:
        """Seconds until what waits now has been sent, at the present pace."""
        rate = self._departures.rate(now)
        return len(self._waiting) / rate if rate > 0.0 else None

    def attempt_ended(
        self,
        replica: HttpReplica,
        lease: Lease,
        permit: Permit,
        key: RoutingKey,
        outcome: Outcome,
        sent: float,
    ) -> None:
        now = self.loop.time()
        lease.release(now)
        if permit.record(now, outcome) is State.CLOSED:
            replica.load.restart(now)
        self.router.ended(lease, key, now, ok=outcome is Outcome.SUCCESS)
        if self.inquest.guarded:
            self.inquest.landed(replica)
        if outcome is Outcome.SUCCESS:
            replica.heard = now
            self.measures.service.observe(now - sent)
            self.measures.by_replica[replica.name, ""] += 1
        replica.settled()
        self._departures.observe(now, 1)
        if len(self._waiting) or self.inquest.guarded:
            self._pump_soon()

    def is_silent(self, replica: HttpReplica, since: float, now: float) -> bool:
        """Whether it has answered nobody since then, and is answering nobody."""
        if replica.heard >= since:
            return False
        if replica.looked != now:  # once for all whose time is up at this moment
            replica.looked = now
            answers = (t.phase in (FIRST, BODY, TUNNEL) for t in self._live if t.replica is replica)
            replica.answers = any(answers)
        return not replica.answers

    def left(self, transit: Transit, how: str) -> None:
        measures = self.measures
        self._live.discard(transit)
        self._waiting.discard(transit)
        if transit.digest:
            self.inquest.left(transit, well=how == "done")
        if transit.hold is not None:
            transit.hold.release()
            transit.hold = None
        if how == "done":
            measures.done += 1
            measures.latency.observe(self.loop.time() - transit.began)
        elif how == "cancelled":
            measures.cancelled += 1
        else:
            measures.failed += 1
            measures.codes[how] += 1

    def _pump_soon(self) -> None:
        if not self._due:
            self._due = True
            self.loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Let what waits look for a replica again, by turns between tenants."""
        now, self._due, self._pumping = self.loop.time(), False, True
        if self.inquest.guarded:
            self.inquest.pump(now)
        passed: list[Waiting[Transit]] = []
        for _ in range(LOOKED_AT):
            place = self._waiting.take()
            if place is None:
                break
            transit = place.item
            assert transit is not None
            transit.seek(now)
            if transit.phase == SEATING:
                passed.append(place)
                if not self._strict:
                    break  # what this one cannot have, the others cannot
        for place in reversed(passed):
            self._waiting.put_back(place)
        self._pumping = False

    def _on_tick(self) -> None:
        now = self.loop.time()
        for transit in list(self._live):
            transit.look(now)
        if self.inquest.guarded:
            self.inquest.look(now)
        if len(self._waiting) or self.inquest.guarded:
            # The clock may have brought a breaker's probe, the end of a penalty or of hope.
            self._pump()
        if self._live:
            after = TICK_S + len(self._live) * LOOK_S
            self._tick = self.loop.call_later(after, self._on_tick)
        else:
            self._tick = None

    # ----------------------------------------------------------------------------------- changes

    def changed(self) -> None:
        """A replica came, went, or is in another state."""
        served = self.ready
        self.sort()
        self.ready = bool(self._serving)
        if served and not self.ready:
            self._unserved_since = self.loop.time()
        if len(self._waiting) or self.inquest.guarded:
            self._pump_soon()

    def looked(self, losses: Sequence[Loss], gone: bool) -> None:
        """At a replica whose connections had broken."""
        self.inquest.looked(losses, self.loop.time(), gone=gone)

    def say_goodbye(self) -> None:
        """Close the WebSockets that pass through."""
        for transit in list(self._live):
            transit.say_goodbye()

    def close(self, error: GatewayError) -> None:
        """End every transit."""
        for transit in list(self._live):
            transit.abandon(error)
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None

    # ------------------------------------------------------------------------------------- views

    def reason(self) -> str:
        """Why no replica is ready, for people."""
        said = [f"{r.name} is {r.state}" + (f" ({r.why})" if r.why else "") for r in self.replicas]
        return f"no replica of {self.name!r} is ready: " + ("; ".join(said) or "none was found")

    def status(self) -> dict[str, Any]:
        """For operators."""
        now, measures = self.loop.time(), self.measures
        return {
            "name": self.name,
            "kind": self.kind,
            "ready": self.ready,
            "waiting": len(self._waiting) + self.inquest.waiting,
            "slo_ms": None,
            "counters": {
                "accepted": measures.accepted,
                "done": measures.done,
                "failed": measures.failed,
                "cancelled": measures.cancelled,
                "live": len(self._live),
            },
            "replicas": [replica.describe(now) for replica in self.replicas],
        }

    def families(self) -> list[Family]:
        waiting = len(self._waiting) + self.inquest.waiting
        return self.measures.families(self.name, len(self._live), waiting)
