"""One native model in one worker: what it takes in, what it refuses, what it says of itself.

Owns the model's live tensor requests and their deadlines; its dispatcher owns their way to the
replicas. Calls, which replicas answer in words, are in the hands of `generation.pool`.
Invariants: each submitted request is finished exactly once, by its deadline (and one tick) at the
latest; accepted = done + failed + cancelled + live.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from backends.wire import Signature
from gateway.config import ModelConfig
from gateway.dispatch import LATE, Dispatcher
from gateway.errors import (
    BadRequest,
    Cancelled,
    DeadlineExceeded,
    GatewayError,
    NoReplica,
    NotFound,
    Shed,
)
from gateway.generation.pool import CallPool
from gateway.measures import Family, Measures
from gateway.oip.directory import Done
from gateway.oip.statistics import ModelStats
from gateway.policy.batching import Batcher, BatchingKnobs
from gateway.policy.breaker import Ejection
from gateway.policy.concurrency import ConcurrencyLimit, crowd_of
from gateway.policy.routing import make_router
from gateway.replica import NativeReplica
from gateway.request import Answer, TensorRequest
from gateway.sizes import Sizes

# How often deadlines are looked at while requests live; a 504 comes at most this much late.
TICK_S = 0.02
# A model that had a ready replica this recently keeps its requests waiting: a killed replica is
# back within its start-up time. Past it, and before the first one was ready, the answer is 503.
FAILOVER_S = 30.0

_REFUSED = {
    "queue_full": "its queue is full",
    "too_late": "the request could not be answered by its deadline",
}


# Load or unload (the first argument) a model, by name, in the whole gateway.
Switch = Callable[[str, str, Done], None]


class Model:
    """`replicas` is the fleet's to fill; it calls `changed` after every change."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        switch: Switch,
        loop: asyncio.AbstractEventLoop,
        rng: random.Random,
        weight: Callable[[str], float] = lambda tenant: 1.0,
    ) -> None:
        self.name, self.config = config.name, config
        self.replicas: list[NativeReplica] = []
        self.ejection = Ejection()
        self.measures = Measures()
        self.signature: Signature | None = None  # until a replica has said it
        self._sizes: Sizes | None = None
        self.versions: tuple[str, ...] = ()  # that can be asked for; the default one first
        self.kind = config.kind or "tensor"  # until a replica says otherwise
        self.ready = False
        self.unloaded = False
        self._switch, self._loop, self._rng = switch, loop, rng
        self._live: set[TensorRequest] = set()
        self._tick: asyncio.TimerHandle | None = None
        self._unserved_since = float("-inf")
        self._crowd = crowd_of(config.adaptive_limit)
        self._dispatcher = Dispatcher(
            self._new_queue(),
            make_router(config.routing, rng),
            retries=config.retries,
            canary=config.canary,
            finish=self._finish,
            measures=self.measures,
            loop=loop,
            weight=weight,
        )
        self._dispatcher.hedge_by(config.hedge)
        self.calls = CallPool(self, config, loop=loop, rng=rng, weight=weight)

    # ---------------------------------------------------------------------------------- requests

    def submit(self, request: TensorRequest) -> None:
        """Take the request; it ends through `request.finish`, possibly before this returns."""
        self.measures.accepted += 1
        self._live.add(request)
        request.cancel = self._gone
        error = self._refuse(request, self._loop.time())
        if error is not None:
            self._finish(request, error)
            return
        if self._tick is None:
            self._tick = self._loop.call_later(TICK_S, self._on_tick)
        self._dispatcher.schedule()

    def _refuse(self, request: TensorRequest, now: float) -> GatewayError | None:
        """Queue the request, or say why not."""
        if self.unloaded:
            return NoReplica(self.reason())
        if not self.ready and now - self._unserved_since > FAILOVER_S:
            return NoReplica(self.reason(), retry_after=1.0)
        if request.version is not None and request.version not in self.versions:
            return self._no_version(request.version)
        config = self.config
        limit_ms = config.timeout_ms if config.slo_ms is None else config.slo_ms
        request.deadline = min(request.deadline, request.arrived + limit_ms / 1e3)
        if request.deadline <= now:
            return DeadlineExceeded("the deadline had passed when the request arrived")
        if self._crowd is not None and not self._crowd.take():
            after = self._dispatcher.queue.drained_in(now)
            return Shed(
                f"model {self.name!r}: {self._crowd.limit} requests are in flight, as many as it "
                "answers without keeping them waiting",
                retry_after=after,
            )
        request.hold = self._crowd
        if self._sizes is not None and self._sizes.buckets:
            request.key = (request.key, self._sizes.bucket(request))
        refusal = self._dispatcher.add(request, now)
        if refusal is None:
            return None
        if refusal.reason == "too_large":
            limits = f"max_batch_size is {self._limit()}"
            if self.config.max_batch_elements is not None:
                limits += f", max_batch_elements is {self.config.max_batch_elements}"
            return BadRequest(
                f"the request is larger than a batch may be: {limits}", param="inputs"
            )
        why = f"model {self.name!r}: {_REFUSED[refusal.reason]}"
        return Shed(why, retry_after=refusal.retry_after)

    def _no_version(self, version: str) -> NotFound:
        have = ", ".join(self.versions) or "none"
        return NotFound(
            f"model {self.name!r} has no version {version!r} now; it has {have}",
            param="model_version",
        )

    def _finish(self, request: TensorRequest, outcome: Answer | GatewayError) -> None:
        self._live.discard(request)
        if request.finish(outcome):
            self._ended(request, outcome)

    def _gone(self, request: TensorRequest) -> None:
        """The client has closed, and the request has ended with that."""
        self._live.discard(request)
        self._ended(request, Cancelled(""))
        self._dispatcher.withdraw(request)

    def _ended(self, request: TensorRequest, outcome: Answer | GatewayError) -> None:
        serving, now = self.versions[0] if self.versions else "", self._loop.time()
        if request.seat is not None:
            request.seat.release(now)
        if request.hold is not None:
            self._leave_crowd(request.hold, outcome, now)
            request.hold = None
        self.measures.ended(request, outcome, now, serving)

    def _leave_crowd(
        self, crowd: ConcurrencyLimit, outcome: Answer | GatewayError, now: float
    ) -> None:
        crowd.release()
        if isinstance(outcome, Answer):
            crowd.observe(now, outcome.queue_us / 1e6, outcome.compute_us / 1e6)

    def _on_tick(self) -> None:
        now = self._loop.time()
        unserved = not self.ready and now - self._unserved_since > FAILOVER_S
        for request in [r for r in self._live if unserved or r.deadline <= now]:
            error = NoReplica(self.reason()) if unserved else DeadlineExceeded(LATE)
            self._finish(request, error)
            self._dispatcher.withdraw(request)
        self._tick = self._loop.call_later(TICK_S, self._on_tick) if self._live else None

    # ----------------------------------------------------------------------------------- changes

    def changed(self) -> None:
        """A replica came, went, or said something new."""
        ready = [replica for replica in self.replicas if replica.ready]
        # What serves by default comes first: not what is tried.
        ready.sort(key=self._tries)
        if ready:
            self.kind = ready[0].status.kind
        fresh = ready[0].signature if ready else self.signature
        renewed = fresh != self.signature
        if renewed and fresh is not None:
            # Kept while equal: surfaces compile it once for each object.
            self.signature, self._sizes = fresh, Sizes(fresh)
        if self.replicas and all(replica.load.drained for replica in self.replicas):
            self._unserved_since = float("-inf")  # an operator's will: nothing will come back soon
        elif self.ready and not ready:
            self._unserved_since = self._loop.time()
        self.ready = bool(ready) and not self.unloaded
        old = self.versions
        self.versions = tuple(
            dict.fromkeys(
                [replica.status.version for replica in ready]
                + [version for replica in ready for version in replica.status.versions]
            )
        )
        self.calls.changed()
        self._dispatcher.update(self.replicas)
        self._dispatcher.reseat(self._waiting())
        if set(old) - set(self.versions) and self.ready:
            self._end_unpinnable()
        if renewed or self._new_limit():
            self._replace_queue()

    def _end_unpinnable(self) -> None:
        """Waiting requests whose pinned version no replica holds any more."""
        for request in self._waiting():
            if request.version is not None and request.version not in self.versions:
                self._finish(request, self._no_version(request.version))
                self._dispatcher.withdraw(request)

    def reconfigure(self, config: ModelConfig) -> None:
        """New limits and policies, for the requests that wait too."""
        if config.routing != self.config.routing:
            self._dispatcher.route_by(make_router(config.routing, self._rng))
        if config.canary != self.config.canary:
            self._dispatcher.split_by(config.canary)
        self.calls.reconfigure(config)
        self._dispatcher.hedge_by(config.hedge)
        if config.adaptive_limit != self.config.adaptive_limit:
            self._crowd = crowd_of(config.adaptive_limit)
        self.config, self._dispatcher.retries = config, config.retries
        self._replace_queue()

    def _limit(self) -> int:
        """Rows in a batch: what the model can take, and what the operator allows."""
        own, theirs = self.config.max_batch_size, self.signature
        limits = [own] if own is not None else []
        limits += [theirs.max_batch_size] if theirs is not None else []
        return min(limits, default=1)

    def _tries(self, replica: NativeReplica) -> bool:
        channel = self.config.canary.channel
        return channel is not None and replica.status.channel == channel

    def _new_limit(self) -> bool:
        return self._dispatcher.queue.knobs.max_batch_size != self._limit()

    def _new_queue(self) -> Batcher[TensorRequest]:
        slo_ms, budget = self.config.slo_ms, self.config.max_batch_elements
        return Batcher(
            BatchingKnobs(
                max_batch_size=self._limit(),
                slo_s=None if slo_ms is None else slo_ms / 1e3,
                max_queue=max(self.config.max_queue, self._limit()),
                cost=None if budget is None or self._sizes is None else self._sizes.elements,
                max_cost=None if self._sizes is None else budget,
            )
        )

    def _replace_queue(self) -> None:
        self._dispatcher.replace(self._waiting(), self._new_queue())

    def _waiting(self) -> list[TensorRequest]:
        """Oldest first."""
        waiting = [request for request in self._live if request.flight is None]
        waiting.sort(key=lambda request: request.arrived)
        return waiting

    def load(self, done: Done) -> None:
        """Back into service in every worker, after a look at what the replicas follow."""
        self._switch("load", self.name, done)

    def unload(self, done: Done) -> None:
        """Out of service in every worker: what is there is answered, nothing new is taken."""
        self._switch("unload", self.name, done)

    def serve(self, on: bool) -> None:
        """What the whole gateway has decided, in this worker."""
        self.unloaded = not on
        self.changed()

    def close(self, error: GatewayError) -> None:
        """End every live request."""
        for request in list(self._live):
            self._finish(request, error)
            self._dispatcher.withdraw(request)
        self._dispatcher.close()
        self.calls.close(error)
        if self._tick is not None:
            self._tick.cancel()

    # ------------------------------------------------------------------------------------- views

    @property
    def stats(self) -> ModelStats:
        return self.measures.statistics

    @property
    def max_batch_size(self) -> int | None:
        return None if self.signature is None else self._limit()

    @property
    def surfaces(self) -> frozenset[str]:
        return self.calls.surfaces

    def reason(self) -> str:
        """Why it is not ready, for people."""
        if self.unloaded:
            return f"model {self.name!r} is unloaded; load it to use it again"
        said = [
            f"{replica.name} is {replica.state}"
            + (f" ({replica.status.reason})" if replica.status.reason else "")
            for replica in self.replicas
        ]
        return f"no replica of model {self.name!r} is ready: " + "; ".join(said)

    def status(self) -> dict[str, Any]:
        """For operators."""
        now, measures = self._loop.time(), self.measures
        return {
            "name": self.name,
            "kind": self.kind,
            "ready": self.ready,
            "unloaded": self.unloaded,
            "waiting": len(self._dispatcher.queue) + self.calls.waiting,
            "slo_ms": self.config.slo_ms,
            "counters": {
                "accepted": measures.accepted,
                "done": measures.done,
                "failed": measures.failed,
                "cancelled": measures.cancelled,
                "live": len(self._live) + self.calls.live,
            },
            "replicas": [replica.describe(now) for replica in self.replicas],
        }

    def families(self) -> list[Family]:
        live = len(self._live) + self.calls.live
        waiting = len(self._dispatcher.queue) + self.calls.waiting
        families = self.measures.families(self.name, live, waiting)
        return families + self.calls.families() if self.calls.surfaces else families
