"""One call on its way: to a replica, to another one if that fails, and its answer back.

Owns the call's one end, its attempt's lease and permit, and decides what a failure means; bytes are
the reply's. Invariants: a lease and a permit are given back exactly once, when their attempt ends,
after the replica was told to stop; nothing is sent again once a byte of an answer has passed; every
call that was taken in ends as done, failed or cancelled.
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import TYPE_CHECKING

from backends.wire import Call, Fault, Piece, WireError
from gateway.errors import (
    DeadlineExceeded,
    GatewayError,
    ReplicaNonsense,
    ReplicaSilent,
    TooLarge,
)
from gateway.generation.attempt import Attempt, error_of, outcome_of, usage_of
from gateway.generation.reply import Reply, Times
from gateway.policy.breaker import Outcome
from gateway.policy.deaths import DEADLY
from gateway.policy.retry import Attempts, Failure
from gateway.policy.routing import RoutingKey
from gateway.policy.tokens import Estimate, Usage

if TYPE_CHECKING:
    from gateway.generation.pool import CallPool
    from gateway.tenants import Visit

# What a call waits for: a replica, the first byte of its answer, the rest of it, nothing.
SEATING, SENT, ANSWERING, ENDED = range(4)
LATE = "the deadline passed before the answer was complete"
# Content types of answers that come token by token.
STREAMS = ("text/event-stream", "application/x-ndjson")
_BUSY = frozenset({429, 503})


class LiveCall:
    """`estimate`: of its work. `deadline` is absolute in the loop's time, infinite where none is
    set; `silence_s` is how long its client waits for the next byte. `version` pins one. `visit`:
    what its tenant is told of the tokens that it used."""

    __slots__ = (
        "_attempts",
        "_deaths",
        "_retry",
        "attempt",
        "began",
        "body",
        "deadline",
        "estimate",
        "key",
        "phase",
        "pool",
        "priority",
        "reply",
        "request_id",
        "silence_s",
        "surface",
        "tenant",
        "track",
        "usage",
        "version",
        "visit",
    )

    def __init__(
        self,
        pool: CallPool,
        reply: Reply,
        surface: str,
        body: bytes,
        *,
        began: float,
        estimate: Estimate,
        key: RoutingKey,
        deadline: float = inf,
        silence_s: float = inf,
        priority: int = 0,
        version: str | None = None,
        request_id: str = "",
        tenant: str = "",
        visit: Visit | None = None,
    ) -> None:
        self.pool, self.reply, self.surface, self.body = pool, reply, surface, body
        self.began, self.estimate, self.key = began, estimate, key
        self.deadline, self.silence_s = deadline, silence_s
        self.priority, self.version = priority, version
        self.request_id, self.tenant, self.visit = request_id, tenant, visit
        if visit is not None:
            visit.tokens = 0.0  # what no replica answers costs nothing
        self.phase = SEATING
        self.track: str | None = None
        self.attempt: Attempt | None = None
        self.usage = Usage()
        self._deaths = 0  # of replicas that had it
        self._attempts: Attempts | None = None
        self._retry: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------------------- to a replica

    def begin(self) -> None:
        """Take it in; it ends through its reply, possibly before this returns."""
        pool = self.pool
        now = pool.loop.time()
        refusal = pool.enter(self, now)
        self._attempts = pool.attempts(now, self.deadline)
        if refusal is None and self.deadline <= now:
            refusal = DeadlineExceeded("the deadline had passed when the request arrived")
        if refusal is not None:
            self.refuse(refusal)
        else:
            self.seek(now)

    @property
    def tried(self) -> list[str]:
        return self._attempts.tried if self._attempts is not None else []

    def seek(self, now: float) -> None:
        """Find a replica, wait for one, or give up. The pool calls it when one may be free."""
        self._retry = None
        found = self.pool.seat(self, now)
        if found is None:
            return  # the pool knows that we wait
        if isinstance(found, GatewayError):
            self.refuse(found)
            return
        self.attempt, self.phase = found, SENT
        left = self.deadline - now
        meta = Call(
            surface=self.surface,
            request_id=self.request_id,
            deadline_ms=None if left == inf else max(1.0, left * 1e3),
            priority=self.priority,
            tenant=self.tenant,
            version=self.version,
        )
        try:
            found.id = found.replica.call(meta, self.body, found)
        except WireError as error:
            self._give_back(Outcome.NEUTRAL)
            self.refuse(TooLarge(f"the request is too large for the wire: {error}"))

    # ---------------------------------------------------------------------------------- its answer

    def answered(self, piece: Piece, data: memoryview, attempt: Attempt) -> None:
        """A piece from the replica."""
        now, info = self.pool.loop.time(), piece.info
        if info is not None and "type" in info and not attempt.said:
            attempt.said = True
            attempt.version = str(info.get("version", ""))
            kind = str(info["type"])
            attempt.streams = kind.startswith(STREAMS)
            try:
                queued, first = attempt.sent - self.began, now - attempt.sent
                times = Times(queued * 1e3, first * 1e3)
                self.reply.begin(kind, attempt.version, attempt.replica.name, times)
            except GatewayError as error:
                self._stop(error, Outcome.FAILURE)
                return
        if not attempt.said:
            self._nonsense("began an answer without its type")
            return
        if piece.final and info is not None:
            self.usage = usage_of(info.get("usage"))
            attempt.load = info.get("load")
            if "fault" in info:
                self._broken(Fault.from_json(info["fault"]), bytes(data))
                return
        if data:
            self._moved(now, attempt)
        if self.visit is not None:
            self._pay(self.visit, final=piece.final)
        if data:
            try:
                self.reply.write(data, last=piece.final)
            except GatewayError as error:
                self._stop(error, Outcome.NEUTRAL)
                return
        if piece.final:
            self._give_back(Outcome.SUCCESS)
            self.reply.end()
            self._end("done")

    def _moved(self, now: float, attempt: Attempt) -> None:
        measures = self.pool.calls
        if self.phase == SENT:
            self.phase = ANSWERING
            self.pool.seats.computed(self, attempt)
            if attempt.streams:
                measures.first.observe(now - self.began)
        elif attempt.streams:
            measures.between.observe(now - attempt.heard)
        attempt.heard = now

    def _pay(self, visit: Visit, *, final: bool) -> None:
        """At any moment the visit holds what would have to be paid if the call ended now."""
        if final and self.usage.prompt:
            visit.tokens = float(self.usage.prompt + self.usage.completion)
        else:
            # One piece carries about one token.
            visit.tokens = (visit.tokens or self.estimate.tokens_in) + 1.0

    def _nonsense(self, what: str) -> None:
        assert self.attempt is not None
        error = ReplicaNonsense(f"replica {self.attempt.replica.name} {what}")
        if self.reply.begun:
            self._stop(error, Outcome.FAILURE)
        else:
            self._tell_to_stop()
            self._failed(Failure.ERROR, error, Outcome.FAILURE)

    # -------------------------------------------------------------------------------- its failures

    def _broken(self, fault: Fault, said: bytes) -> None:
        """The replica could not go on, and says so to the client itself."""
        error = error_of(fault)
        self._give_back(outcome_of(fault.status))
        self.reply.fail(error, final=True, said=said)
        self._end(error.code)

    def lost(self, fault: Fault | None) -> None:
        """The attempt ended without a whole answer: by a fault, or with its connection."""
        attempt = self.attempt
        assert attempt is not None
        attempt.id = 0
        if fault is None:
            error: GatewayError = ReplicaNonsense(
                f"replica {attempt.replica.name} died before it had answered"
            )
            self._deaths += 1
            why = Failure.LOST if self._deaths < DEADLY else Failure.FINAL
            self._failed(why, error, Outcome.FAILURE, dead=True)
            return
        error = error_of(fault)
        outcome = outcome_of(fault.status)
        if not fault.retryable:
            why = Failure.FINAL
        elif fault.status in _BUSY:
            why = Failure.BUSY
            self.pool.seats.busy(attempt.replica, self.pool.loop.time())
        else:
            why = Failure.ERROR
        self._failed(why, error, outcome)

    def _failed(
        self, why: Failure, error: GatewayError, outcome: Outcome, *, dead: bool = False
    ) -> None:
        attempt, attempts, now = self.attempt, self._attempts, self.pool.loop.time()
        assert attempt is not None and attempts is not None
        self._give_back(outcome)
        if self.reply.begun:
            self._close(error, final=True)
            return
        others = self.pool.seats.others(self, attempt.replica)
        wait = attempts.failed(attempt.replica.name, why, now, others, dead=dead)
        if wait is None:
            # What the client did wrong it may mend; all else has been tried where it could be.
            self._close(error, final=error.status >= 500 or error.status == 429)
            return
        self.pool.measures.retried += 1
        self.phase = SEATING
        # Not from within the link's callback: what it is reading must come to its end first.
        self._retry = self.pool.loop.call_later(wait, self._seek_again)

    def _seek_again(self) -> None:
        if self.phase == SEATING:
            self.seek(self.pool.loop.time())

    def look(self, now: float) -> None:
        """The pool's tick: has this been waiting for too long?"""
        if now >= self.deadline:
            self._stop(DeadlineExceeded(LATE), Outcome.NEUTRAL)
            return
        attempt = self.attempt
        heard = self.began if attempt is None else attempt.heard
        quiet = now - heard
        if quiet >= self.silence_s:
            waits = "the client waits no longer for the next byte"
            self._stop(DeadlineExceeded(waits), Outcome.NEUTRAL)
        elif attempt is None:
            self.reply.look(now, heard)  # how long it may wait is the pool's to say
        elif quiet >= self.pool.limits[self.phase]:
            self._silent(attempt, quiet)
        else:
            self.reply.look(now, heard)

    def _silent(self, attempt: Attempt, quiet: float) -> None:
        what = "began no answer" if self.phase == SENT else "stopped in its answer"
        error = ReplicaSilent(f"replica {attempt.replica.name} {what} for {quiet:.1f} s")
        self._tell_to_stop()
        self._failed(Failure.TIMEOUT, error, Outcome.FAILURE)

    # ------------------------------------------------------------------------------------ its end

    def gone(self) -> None:
        """The client has left: nobody needs the answer, and the replica hears of it at once."""
        if self.phase == ENDED:
            return
        self._tell_to_stop()
        self._give_back(Outcome.NEUTRAL)
        self._end("cancelled")

    def abandon(self, error: GatewayError) -> None:
        """The pool is going away, or the version that is pinned."""
        if self.phase != ENDED:
            self._stop(error, Outcome.NEUTRAL)

    def refuse(self, error: GatewayError) -> None:
        """No attempt is under way, and none will be."""
        self._close(error, final=bool(self.tried))

    def _stop(self, error: GatewayError, outcome: Outcome) -> None:
        self._tell_to_stop()
        self._give_back(outcome)
        self._close(error, final=True)

    def _close(self, error: GatewayError, *, final: bool) -> None:
        self.reply.fail(error, final=final)
        self._end(error.code)

    def _tell_to_stop(self) -> None:
        attempt = self.attempt
        if attempt is not None and attempt.id:
            attempt.replica.cancel(attempt.id)

    def _give_back(self, outcome: Outcome) -> None:
        """The one place where an attempt's lease and permit end."""
        attempt, self.attempt = self.attempt, None
        if attempt is not None:
            attempt.call = None
            self.pool.attempt_ended(self, attempt, outcome)

    def _end(self, how: str) -> None:
        """`how`: done, cancelled, or a failure's code."""
        if self.phase == ENDED:
            return
        self.phase, self.body = ENDED, b""
        if self._retry is not None:
            self._retry.cancel()
        self.pool.left(self, how)
