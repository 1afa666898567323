"""One model's calls in one worker: which live, which wait and for how long, and what is counted.

Owns the live calls and the queue of those that wait; each call owns its own way, and `seats` says
where it may go. Invariants: a call that entered leaves once; accepted = done + failed + cancelled +
live; the queue is bounded, and looked at whenever a replica may have become free.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gateway.config import ModelConfig
from gateway.errors import GatewayError, NoReplica, NotFound, Shed
from gateway.generation.attempt import Attempt
from gateway.generation.call import ANSWERING, SEATING, SENT, LiveCall
from gateway.generation.measures import CallMeasures
from gateway.generation.seats import Seats
from gateway.measures import Family
from gateway.policy.breaker import Outcome
from gateway.policy.drain import DrainRate
from gateway.policy.fairness import FairQueue
from gateway.policy.retry import Attempts, RetryBudget, RetryPolicy
from gateway.policy.tokens import Usage

if TYPE_CHECKING:
    from gateway.model import Model

# Deadlines and silences are looked at so often; they may pass by so much.
TICK_S = 0.05
# And so much later for each live call: looking at them all takes a few hundredths of the time.
LOOK_S = 2e-5
# With a ready replica this recently, calls wait for one: a killed replica is back within its
# start-up time. After it, and before the first was ready, the answer is 503.
FAILOVER_S = 30.0
# One look at the queue tries so many: behind those that wait for one version others may be served.
LOOKED_AT = 64


class CallPool:
    """`changed` after every change of the model's replicas."""

    def __init__(
        self,
        model: Model,
        config: ModelConfig,
        *,
        loop: asyncio.AbstractEventLoop,
        rng: random.Random,
        weight: Callable[[str], float] = lambda tenant: 1.0,
    ) -> None:
        self.name, self.loop, self._rng, self._model = config.name, loop, rng, model
        self.measures, self.calls = model.measures, CallMeasures()
        self.seats = Seats(config, rng)
        self.work = self.seats.work
        self._budget = RetryBudget()
        self._live: set[LiveCall] = set()
        self._weight = weight
        self._waiting: FairQueue[LiveCall] = FairQueue(config.max_queue, weight)
        self._drain = DrainRate()
        self._unserved_since = float("-inf")
        self._tick: asyncio.TimerHandle | None = None
        self._due = self._pumping = False
        self.config = config
        self.reconfigure(config)

    def reconfigure(self, config: ModelConfig) -> None:
        before, self.config, keys = self.config, config, config.generation
        if config.max_queue != before.max_queue:
            self._resize(config.max_queue)
        self.seats.reconfigure(config)
        self._policy = RetryPolicy(retries=config.retries)
        longest = float("inf")
        self.limits = {
            SENT: longest if keys.first_ms is None else keys.first_ms / 1e3,
            ANSWERING: keys.idle_ms / 1e3,
        }

    def _resize(self, most: int) -> None:
        """Another bound; what waits keeps its order, and what finds no room is refused."""
        old, self._waiting = self._waiting, FairQueue(most, self._weight)
        while (call := old.pop()) is not None:
            if (why := self._wait(call, self.loop.time())) is not None:
                call.refuse(why)

    @property
    def versions(self) -> Sequence[str]:
        return self._model.versions

    @property
    def surfaces(self) -> frozenset[str]:
        """The forms of calls that any replica answers."""
        return self.seats.surfaces

    @property
    def heard(self) -> bool:
        """Whether any replica has ever said what it is."""
        return self.seats.heard

    def unready(self) -> NoReplica:
        return NoReplica(self._model.reason(), retry_after=1.0)

    @property
    def live(self) -> int:
        return len(self._live)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    # ------------------------------------------------------------------------------ for its calls

    def enter(self, call: LiveCall, now: float) -> GatewayError | None:
        """Take it in, and say why it is refused."""
        self.measures.accepted += 1
        self._live.add(call)
        if self._tick is None:
            self._tick = self.loop.call_later(TICK_S, self._on_tick)
        if self._model.unloaded:
            return NoReplica(self._model.reason())
        if call.version is not None and self._model.ready and not self.seats.holds(call.version):
            return self._no_version(call, call.version)
        self.seats.place(call)
        return None

    def attempts(self, now: float, deadline: float) -> Attempts:
        return Attempts(self._policy, self._budget, now, deadline, self._rng)

    def seat(self, call: LiveCall, now: float) -> Attempt | GatewayError | None:
        """Its next attempt; None: it waits, and `seek` is called again; or why there is none."""
        if len(self._waiting) and not self._pumping:
            self._pump_soon()  # it queues behind those that came before
        elif (found := self.seats.choose(call, now)) is not None:
            self.measures.queue.observe(now - call.began)
            return found
        if not self.seats.serving and now - self._unserved_since > FAILOVER_S:
            return self.unready()
        return None if self._pumping else self._wait(call, now)

    def _wait(self, call: LiveCall, now: float) -> GatewayError | None:
        """By turns between tenants, by what they have used; or say why it may not wait. When the
        queue is full, who has most waiting has somebody refused."""
        # Who was sent before has paid for it.
        cost = 0.0 if call.tried else self.work.cost(call.estimate)
        waiting, rate = self._waiting, self._drain.rate(now)
        drained = waiting.total / rate if rate > 0.0 else None
        if rate > 0.0 and now + waiting.ahead(call.tenant, cost) / rate > call.deadline:
            why = f"model {self.name!r}: the request could not begin before its deadline"
            return Shed(why, retry_after=drained)
        self._drain.began(now)
        refused = waiting.push(call, call.tenant, cost, priority=call.priority)
        if refused is not None:
            full = Shed(f"model {self.name!r}: its queue is full", retry_after=drained)
            if refused is call:
                return full
            refused.refuse(full)
        return None

    def attempt_ended(self, call: LiveCall, attempt: Attempt, outcome: Outcome) -> None:
        now, replica, measures = self.loop.time(), attempt.replica, self.measures
        self.seats.give_back(call, attempt, outcome, now)
        ok = outcome is Outcome.SUCCESS
        if ok:
            measures.by_replica[replica.name, attempt.version] += 1
            self.calls.ended(call.surface, call.usage)
            self._settle(call)
            queued, ran = attempt.sent - call.began, now - attempt.sent
            measures.statistics.called(attempt.version, queued, ran, time.time())
        if self.seats.compares and outcome is not Outcome.NEUTRAL:
            version = attempt.version or call.version or replica.status.version
            measures.compared(version, [not ok], _pace(now - attempt.sent, call.usage))
        if len(self._waiting):
            self._pump_soon()

    def _settle(self, call: LiveCall) -> None:
        """Its tenant pays in turns for what was computed, not for what was guessed."""
        usage = call.usage
        used = max(0, usage.prompt - usage.cached) + self.work.weight * usage.completion
        self._waiting.settle(call.tenant, used - self.work.cost(call.estimate))

    def left(self, call: LiveCall, how: str) -> None:
        measures, now = self.measures, self.loop.time()
        self._live.discard(call)
        self._waiting.discard(call)
        if how == "done":
            measures.done += 1
            measures.latency.observe(now - call.began)
        elif how == "cancelled":
            measures.cancelled += 1
        else:
            measures.failed += 1
            measures.codes[how] += 1
            serving = self.versions[0] if self.versions else ""
            measures.statistics.failed(call.version or serving, now - call.began)

    # ---------------------------------------------------------------------------------- the queue

    def _pump_soon(self) -> None:
        if not self._due:
            self._due = True
            self.loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Let what waits look for a replica again: whose turn it is first."""
        now, self._due, self._pumping = self.loop.time(), False, True
        missed = []
        for _ in range(LOOKED_AT):
            place = self._waiting.take()
            if place is None:
                break
            call = place.item
            assert call is not None
            call.seek(now)
            if call.phase != SEATING:
                self._drain.left(now, place.cost)
                continue
            missed.append(place)
            if call.version is call.track is None:
                break  # what this one cannot have, the others cannot
        for place in missed:
            self._waiting.put_back(place)
        self._pumping = False
        if not len(self._waiting):
            self._drain.emptied()

    def _on_tick(self) -> None:
        now = self.loop.time()
        for call in list(self._live):
            call.look(now)
        if len(self._waiting):
            # The clock may have brought a breaker's probe, the end of a penalty or of hope.
            self._pump()
        if self._live:
            after = TICK_S + len(self._live) * LOOK_S
            self._tick = self.loop.call_later(after, self._on_tick)
        else:
            self._tick = None

    # ----------------------------------------------------------------------------------- changes

    def changed(self) -> None:
        """A replica came, went, or said something new."""
        now, served = self.loop.time(), bool(self.seats.serving)
        self.seats.update(self._model.replicas, now)
        if all(replica.load.drained for replica in self._model.replicas):
            self._unserved_since = float("-inf")  # an operator's will: nothing comes back soon
        elif served and not self.seats.serving:
            self._unserved_since = now
        if self._model.ready:
            self._end_unpinnable()
        if len(self._waiting):
            self._pump_soon()

    def _end_unpinnable(self) -> None:
        for call in [call for call in self._live if call.phase == SEATING]:
            if call.version is not None and not self.seats.holds(call.version):
                call.abandon(self._no_version(call, call.version))

    def _no_version(self, call: LiveCall, version: str) -> NotFound:
        have = ", ".join(self._model.versions) or "none"
        # As this client names it: sockets have no headers of a request.
        param = "model_version" if call.surface == "ws" else "x-model-version"
        return NotFound(
            f"model {self.name!r} has no version {version!r} now; it has {have}", param=param
        )

    def families(self) -> list[Family]:
        return self.calls.families(self.name)

    def close(self, error: GatewayError) -> None:
        """End every call."""
        for call in list(self._live):
            call.abandon(error)
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None


def _pace(seconds: float, usage: Usage) -> float:
    """For the comparison of versions: answers differ in length, not in what a token takes."""
    return seconds / max(1, usage.completion)
