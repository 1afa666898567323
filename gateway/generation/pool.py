"""One model's calls in one worker: who gets the next one, which wait, and what is counted.

Owns the live calls and the queue of those that wait; each call owns its own way. Invariants: a
call that entered leaves once; accepted = done + failed + cancelled + live; the queue is bounded,
and what waits in it is looked at whenever a replica may have become free.
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
from gateway.generation.seen import Seen
from gateway.measures import Family
from gateway.policy.breaker import Outcome, State, usable
from gateway.policy.fairness import FairQueue
from gateway.policy.prefix import PrefixMemory
from gateway.policy.retry import Attempts, RetryBudget, RetryPolicy
from gateway.policy.routing import Router, make_router
from gateway.policy.tokens import TokenWork, Usage
from gateway.tracks import Tracks

if TYPE_CHECKING:
    from gateway.model import Model
    from gateway.replica import NativeReplica

# Deadlines and silences are looked at so often; they may pass by so much.
TICK_S = 0.05
# And so much later for each live call: looking at them all takes a few hundredths of the time.
LOOK_S = 2e-5
# With a ready replica this recently, calls wait for one: a killed replica is back within its
# start-up time. After it, and before the first was ready, the answer is 503.
FAILOVER_S = 30.0
# One that says that it is busy gets nothing for so long, unless there is no other.
BUSY_S = 0.5
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
        self.surfaces: frozenset[str] = frozenset()  # of calls, that any replica answers
        self.work = TokenWork(float(config.generation.expected_tokens))
        self.memory = PrefixMemory()
        self._budget = RetryBudget()
        self._live: set[LiveCall] = set()
        self._weight = weight
        self._waiting: FairQueue[LiveCall] = FairQueue(config.max_queue, weight)
        self._seen: dict[str, Seen] = {}
        self._serving: list[Seen] = []
        self._unserved_since = float("-inf")
        self._tick: asyncio.TimerHandle | None = None
        self._due = self._pumping = False
        self.config = config
        self.router: Router = make_router(config.routing, rng)
        self.reconfigure(config)

    def reconfigure(self, config: ModelConfig) -> None:
        before, self.config, keys = self.config, config, config.generation
        if config.max_queue != before.max_queue:
            self._resize(config.max_queue)
        if config.routing != before.routing:
            self.router = make_router(config.routing, self._rng)
        self._policy = RetryPolicy(retries=config.retries)
        self._tracks = Tracks(config.canary)
        self._tracks.update([seen.replica for seen in self._serving])
        longest = float("inf")
        self.limits = {
            SENT: longest if keys.first_ms is None else keys.first_ms / 1e3,
            ANSWERING: keys.idle_ms / 1e3,
        }

    def _resize(self, most: int) -> None:
        """Another bound; what waits keeps its order, and what finds no room is refused."""
        old, self._waiting = self._waiting, FairQueue(most, self._weight)
        while (call := old.pop()) is not None:
            self._wait(call)

    @property
    def versions(self) -> Sequence[str]:
        return self._model.versions

    @property
    def heard(self) -> bool:
        """Whether any replica has ever said what it is."""
        return any(seen.replica.status.kind for seen in self._seen.values())

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
        if call.version is not None and self._model.ready and not self._holders(call.version):
            return self._no_version(call.version)
        call.track = self._tracks.place(call.key.session, call.version)
        return None

    def attempts(self, now: float, deadline: float) -> Attempts:
        return Attempts(self._policy, self._budget, now, deadline, self._rng)

    def seat(self, call: LiveCall, now: float) -> Attempt | GatewayError | None:
        """Its next attempt; None: it waits, and `seek` is called again; or why there is none."""
        if len(self._waiting) and not self._pumping:
            self._pump_soon()  # it queues behind those that came before
        elif (found := self._choose(call, now)) is not None:
            return found
        if not self._serving and now - self._unserved_since > FAILOVER_S:
            return NoReplica(self._model.reason(), retry_after=1.0)
        if not self._pumping:
            self._wait(call)
        return None

    def _wait(self, call: LiveCall) -> None:
        """By turns between tenants, by what they have used. Who is full has somebody refused."""
        # Who was sent before has paid for it.
        cost = 0.0 if call.tried else self.work.cost(call.estimate)
        refused = self._waiting.push(call, call.tenant, cost, priority=call.priority)
        if refused is not None:
            why = f"model {self.name!r}: its queue is full"
            refused.refuse(Shed(why, retry_after=1.0))

    def _choose(self, call: LiveCall, now: float) -> Attempt | None:
        able, panic = usable(self._serving, len(self._model.replicas), now)
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
                return self._send(call, free, now, panic)
            if wanted and not tried:
                return None  # those that are not busy will be free again
        return None

    def _may(self, seen: Seen, call: LiveCall) -> bool:
        if call.version is not None:
            return seen.replica.serves(call.version)
        if not self._tracks.stands(call.track, None):
            call.track = self._tracks.place(call.key.session, None)
        return self._tracks.serves(seen.name, call.track)

    def _send(
        self, call: LiveCall, free: Sequence[Seen], now: float, panic: bool
    ) -> Attempt | None:
        held = self.memory.held(call.key.prefix) if call.key.prefix else {}
        spared = self.work.spared(held)
        cost = self.work.cost(call.estimate)
        for seen in free:
            seen.settle(now)
        key = call.key._replace(spared=spared) if spared else call.key
        chosen = self.router.choose(free, key, now, cost=cost)
        if chosen is None:
            return None
        permit = chosen.breaker.allow(now, panic=panic)
        if permit is None:
            return None  # its one probe is under way
        replica = chosen.replica
        # What is cached of it costs nothing, but some of every prompt is computed.
        lease = replica.calls.take(max(1.0, cost - spared.get(replica.name, 0.0)), now)
        self.router.sent(lease, call.key, now)
        self.memory.sent(call.key.prefix, lease)
        self.measures.queue.observe(now - call.began)
        return Attempt(call, replica, lease, permit, now, held.get(replica.name, 0))

    def computed(self, call: LiveCall, attempt: Attempt) -> None:
        """The prompt is done; only the answer is still to come."""
        attempt.lease.reprice(self.work.weight * call.estimate.tokens_out)

    def others(self, call: LiveCall, here: NativeReplica, now: float) -> int:
        """Replicas in use that have not failed it, beside the one that it was on."""
        tried = call.tried
        return sum(
            seen.replica is not here and seen.name not in tried and self._may(seen, call)
            for seen in self._serving
        )

    def busy(self, replica: NativeReplica, now: float) -> None:
        seen = self._seen.get(replica.name)
        if seen is not None:
            seen.busy_until = now + BUSY_S

    def attempt_ended(self, call: LiveCall, attempt: Attempt, outcome: Outcome) -> None:
        now, replica = self.loop.time(), attempt.replica
        attempt.lease.release(now)
        if attempt.permit.record(now, outcome) is State.CLOSED:
            replica.recovered(now)
        seen = self._seen.get(replica.name)
        if seen is not None and attempt.load:
            seen.told(attempt.load, self.work, now)
        ok = outcome is Outcome.SUCCESS
        self.router.ended(attempt.lease, call.key, now, ok=ok)
        if ok:
            self.work.ended(call.estimate, call.usage, attempt.promised)
            self.measures.by_replica[replica.name, attempt.version] += 1
            self.calls.ended(call.surface, call.usage)
            self._settle(call)
            queued, ran = attempt.sent - call.began, now - attempt.sent
            self.measures.statistics.called(attempt.version, queued, ran, time.time())
        if self._tracks.channel is not None and outcome is not Outcome.NEUTRAL:
            version = attempt.version or call.version or replica.status.version
            self.measures.compared(version, [not ok], _pace(now - attempt.sent, call.usage))
        replica.settled()
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
            if call.phase == SEATING:
                missed.append(place)
                if call.version is call.track is None:
                    break  # what this one cannot have, the others cannot
        for place in missed:
            self._waiting.put_back(place)
        self._pumping = False

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
        now = self.loop.time()
        seen: dict[str, Seen] = {}
        for replica in self._model.replicas:
            known = self._seen.get(replica.name)
            if known is None or known.replica is not replica:
                known = Seen(replica)
            seen[replica.name] = known
            known.heard(self.work, now)
        self._seen = seen
        serving = [each for each in seen.values() if each.replica.ready and each.replica.surfaces]
        if self._serving and not serving:
            self._unserved_since = now
        if all(replica.load.drained for replica in self._model.replicas):
            self._unserved_since = float("-inf")  # an operator's will: nothing comes back soon
        self._serving = serving
        # What was said last stays: a model is what it is while its replicas are away.
        said = {name for each in seen.values() for name in each.replica.surfaces}
        self.surfaces = frozenset(said) or self.surfaces
        self._tracks.update([each.replica for each in serving])
        if self._model.ready:
            self._end_unpinnable()
        if len(self._waiting):
            self._pump_soon()

    def _end_unpinnable(self) -> None:
        for call in [call for call in self._live if call.phase == SEATING]:
            if call.version is not None and not self._holders(call.version):
                call.abandon(self._no_version(call.version))

    def _holders(self, version: str) -> bool:
        return any(seen.replica.serves(version) for seen in self._serving)

    def _no_version(self, version: str) -> NotFound:
        have = ", ".join(self._model.versions) or "none"
        return NotFound(
            f"model {self.name!r} has no version {version!r} now; it has {have}", param="version"
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
