"""One request on its way through the relay: to a replica, to another one if that fails, and back.

Owns the request's one end, its lease and its permit, and decides what a failure means; the bytes
are `sending`'s and `answering`'s. Invariants: a lease and a permit are given back exactly once,
when their attempt ends, after its upstream was closed; nothing is sent twice once a byte of an
answer, or an unrepeatable request, has passed; every transit that began ends as done, failed or
cancelled.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway.errors import (
    DeadlineExceeded,
    GatewayError,
    ReplicaNonsense,
    ReplicaSilent,
    Shed,
)
from gateway.lane import Exchange
from gateway.policy.breaker import Outcome
from gateway.policy.retry import Attempts, Failure
from gateway.relay.answering import ENDED, FIRST, HEAD, SEATING, TUNNEL
from gateway.relay.connection import Broke, Headers
from gateway.relay.memo import Known
from gateway.relay.pool import PoolExhausted
from gateway.relay.reply import NO_RETRY, refuse
from gateway.relay.twofold import Twofold

if TYPE_CHECKING:
    from gateway.relay.asked import Asked
    from gateway.relay.destination import Destination

# A kept connection that breaks within this was closed before the request came.
STALE_S = 0.05
# An unwanted answer up to this size is read to its end to keep its connection.
WORTH_READING = 64 * 1024
# A tunnel without a byte in either direction.
TUNNEL_IDLE_S = 3600.0
# An upstream that has been told goodbye closes its end within this.
PARTING_S = 1.0
# Clients that wait for less than this say nothing of a replica by giving up.
SILENT_S = 1.0
# Where the upstream does not say how long it is busy.
BUSY_S = 0.5
LONGEST_BUSY_S = 30.0
# Statuses of a replica that another one may not give. Back-pressure first.
BUSY = frozenset({429, 503})
ELSEWHERE = BUSY | {502, 504}


class Transit(Twofold):
    """`tried` names the replicas that have failed it. `digest`, of what it asks for, is made where
    replicas have died; `suspect`: perhaps of this one, so it is to be alone with the next."""

    __slots__ = ("_attempts", "_retry", "_told", "awaits_look", "digest", "suspect")

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
        self._attempts: Attempts | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._told = b""  # fields that a failed attempt adds to the answer
        self.digest = b""
        self.suspect = self.awaits_look = False

    # ------------------------------------------------------------------------------- the request

    def begin(self) -> None:
        pool = self.pool
        now = pool.loop.time()
        self.exchange.on_gone = self.client_gone
        self._listen()
        pool.entered(self, now)
        self._attempts = pool.attempts(now, self.deadline)
        if self.deadline <= now:
            self._refuse(DeadlineExceeded("the deadline had passed when the request arrived"))
            return
        if pool.crowd is not None and (refused := pool.squeeze(self, now)) is not None:
            self._refuse(refused)
            return
        if pool.inquest.pending and (refused := pool.inquest.received(self, now)) is not None:
            self._refuse(refused)
            return
        self.seek(now)

    @property
    def kept_body(self) -> bytes | None:
        """Its body; None where that is not, or no more, here as a whole."""
        return self._body if self._complete and self._replayable else None

    @property
    def request_name(self) -> str:
        """For people."""
        return f"{self.exchange.head.method} {self.exchange.path}"

    @property
    def tried(self) -> list[str]:
        return self._attempts.tried if self._attempts is not None else []

    def seek(self, now: float) -> None:
        """Find a replica, wait for one, or give up. The pool calls it when one may be free."""
        self.phase, self._retry = SEATING, None
        found = self.pool.seat(self, now)
        if found is None:
            return  # the pool knows that we wait
        if isinstance(found, GatewayError):
            self._refuse(found)
            return
        self.permit = found.breaker.allow(now, panic=True)  # it was chosen by that rule
        self.lease = found.load.take(1.0, now)
        self.pool.router.sent(self.lease, self.key, now)
        self._dispatch(found, now)
        if self.pool.hedging is not None and self._hedge is None and not self.suspect:
            self.plan_hedge(self.pool.hedging, now)

    def not_connected(self, why: Exception) -> None:
        assert self.replica is not None
        name = self.replica.name
        if isinstance(why, PoolExhausted):
            full = Shed(f"replica {name}: {why}", retry_after=1.0)
            self._failed(Failure.BUSY, full, Outcome.NEUTRAL)
        else:
            error = ReplicaNonsense(
                f"replica {name} cannot be reached: {why or 'it took too long'}"
            )
            self._failed(Failure.REFUSED, error, Outcome.FAILURE, dead=True)

    def client_gone(self) -> None:
        """The client left: nobody needs the answer, and the upstream hears of it at once."""
        self._close_upstream()
        self._give_back(Outcome.NEUTRAL)
        self._end("cancelled")

    # -------------------------------------------------------------------------------- the answer

    def upstream_head(self, status: int, reason: bytes, headers: Headers) -> None:
        self._moved = True
        if status in ELSEWHERE and (arm := self._arm) is not None and arm.connection is not None:
            self._close_upstream()
            self._give_back(outcome_of(status))
            self._adopt(arm)
            return
        self._drop_arm()
        if status in ELSEWHERE and self._go_elsewhere(status, headers):
            return
        if status == 101 and not self.asked.upgrade:
            self._close_upstream()
            assert self.replica is not None
            error = ReplicaNonsense(f"replica {self.replica.name} switched protocols unasked")
            self._failed(Failure.ERROR, error, Outcome.FAILURE)
            return
        self.phase, self._status, self._headers = FIRST, status, headers
        if self.pool.hedging is not None:
            self.pool.hedging.observe(self.pool.loop.time() - self.sent)
        if self.hold is not None:
            self.pool.heard(self)

    def upstream_done(self) -> None:
        status, self.connection = self._status, None
        if self.phase == TUNNEL:
            outcome = Outcome.SUCCESS
            self._pass_on()
            self.exchange.end()
        else:
            outcome = outcome_of(status)
            self._answer_whole()
        self._give_back(outcome)
        self._end("done" if status < 500 else f"http_{status}")

    def parted(self) -> None:
        """The lane reads on for a moment, so that the client gets its close frame; the upstream
        closes when it has read ours, or is cut off."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.leave(PARTING_S)
        self.exchange.end()
        self._give_back(Outcome.SUCCESS)
        self._end("done")

    def upstream_whole(self, known: Known, body: bytes) -> None:
        """Of a good status only, so it is always accepted."""
        self.connection = None
        if self.pool.hedging is not None:
            self.pool.hedging.observe(self.pool.loop.time() - self.sent)
            self._drop_arm()
        if self.hold is not None:
            self.pool.heard(self)
        answer = known.answer
        if self.meter is not None:
            self.meter.whole(known.status, body)
        fields = answer.fields + self.own_fields()
        self.exchange.respond(known.status, body, answer.content_type, fields)
        self._give_back(Outcome.SUCCESS)
        self._end("done")

    def upstream_failed(self, how: Broke, detail: str) -> None:
        self.connection = None
        assert self.replica is not None
        error = ReplicaNonsense(f"replica {self.replica.name} {detail}")
        waits = how is not Broke.NONSENSE and self.pool.inquest.lost(self, self.replica)
        if self.started:
            self._give_back(Outcome.FAILURE)
            self._break_off(error)
            self._end(error.code)
            return
        if how is Broke.NONSENSE:
            self._failed(Failure.ERROR, error, Outcome.FAILURE)
            return
        stale = how is Broke.CLOSED_IDLE and self.pool.loop.time() - self.sent < STALE_S
        # What dies of a request says nothing of how the replica does with others.
        outcome = Outcome.NEUTRAL if stale or self.suspect else Outcome.FAILURE
        self._failed(Failure.LOST, error, outcome, dead=True, waits=waits)

    def own_fields(self) -> bytes:
        assert self.replica is not None
        return self.replica.served_by + self._request_id + self._cookie + self._told

    # -------------------------------------------------------------------------------- the failure

    def _go_elsewhere(self, status: int, headers: Headers) -> bool:
        """Whether this answer is left unread, because another replica is asked."""
        replica, connection, now = self.replica, self.connection, self.pool.loop.time()
        assert replica is not None and connection is not None
        if status in BUSY:
            replica.busy(now + retry_after(headers))
        why = Failure.BUSY if status in BUSY else Failure.ERROR
        others = self.pool.others(self, now)
        if not others or self._wait(why, now, others) is None:
            if self.tried:
                self._told = NO_RETRY
            return False
        length = next((int(value) for name, value in headers if name == b"content-length"), None)
        if length is not None and length <= WORTH_READING:
            connection.discard()
        else:
            connection.abort()
        self.connection = None
        self._give_back(outcome_of(status))
        self.pool.measures.retried += 1
        # Not from within the parser's callback: what it is reading must come to its end first.
        self._retry = self.pool.loop.call_later(0.0, self._seek_again)
        self.phase = SEATING
        return True

    def _failed(
        self,
        why: Failure,
        error: GatewayError,
        outcome: Outcome,
        *,
        dead: bool = False,
        waits: bool = False,
    ) -> None:
        """An attempt ended before any byte of an answer. `dead`: its connection did; `waits`: what
        follows depends on what is found to have happened to the replica."""
        now = self.pool.loop.time()
        self._give_back(outcome)
        if (arm := self._arm) is not None and arm.connection is not None:
            self._adopt(arm)
            return
        self._drop_arm()
        self._status, self._headers = 0, []
        self._pieces.clear()
        repeat = self._replayable and (why is Failure.REFUSED or self._repeatable)
        others = self.pool.others(self, now)
        wait = self._wait(why, now, others, dead=dead) if repeat else None
        if wait is None:
            self._told = NO_RETRY
            self._refuse(error)
            return
        self.pool.measures.retried += 1
        if waits:
            self.phase, self.awaits_look = SEATING, True
        elif wait > 0.0:
            self.phase = SEATING
            self._retry = self.pool.loop.call_later(wait, self._seek_again)
        else:
            self.seek(now)

    def _wait(self, why: Failure, now: float, others: int, *, dead: bool = False) -> float | None:
        """Seconds until the next attempt, None: no more."""
        replica, attempts = self.replica, self._attempts
        assert replica is not None and attempts is not None
        if why in (Failure.BUSY, Failure.ERROR) and not (self._replayable and self._repeatable):
            return None
        return attempts.failed(replica.name, why, now, others, dead=dead)

    def _seek_again(self) -> None:
        if self.phase == SEATING:
            self.seek(self.pool.loop.time())

    def look(self, now: float) -> None:
        """The pool's tick: has this been waiting for too long?"""
        if now >= self.deadline and self.phase != TUNNEL:
            late = DeadlineExceeded("the deadline passed before the answer was complete")
            self._time_out(late, self._of_silence(now))
            return
        if self.phase < HEAD:
            return  # the pool bounds the one, the connection's own limit the other
        if self._moved or self._held_back:
            self._moved, self._since = False, now
            return
        limits = self.pool.limits
        quiet = now - self._since
        assert self.replica is not None
        if quiet >= limits[self.phase]:
            what = "began no answer" if self.phase == HEAD else "stopped in its answer"
            error = ReplicaSilent(f"replica {self.replica.name} {what} for {quiet:.1f} s")
            self._time_out(error, Outcome.FAILURE)
        elif self.phase != TUNNEL:
            self._keep_alive(now, self.pool.heartbeat_s)

    def _of_silence(self, now: float) -> Outcome:
        """What a deadline says of the replica: nothing, unless nobody hears from it any more."""
        replica = self.replica
        if self.phase != HEAD or replica is None or now - self.sent < SILENT_S:
            return Outcome.NEUTRAL
        silent = self.pool.is_silent(replica, self.sent, now)
        return Outcome.FAILURE if silent else Outcome.NEUTRAL

    def _time_out(self, error: GatewayError, outcome: Outcome = Outcome.NEUTRAL) -> None:
        self._close_upstream()
        if self.started:
            self._give_back(outcome)
            if self.phase == TUNNEL:
                self.exchange.abort()
            else:
                self._break_off(error)
            self._end(error.code)
        elif isinstance(error, ReplicaSilent):
            self._failed(Failure.TIMEOUT, error, outcome)
        else:
            self._give_back(outcome)
            self._refuse(error)

    def abandon(self, error: GatewayError) -> None:
        """The pool is going away."""
        self._close_upstream()
        self._give_back(Outcome.NEUTRAL)
        if self.started:
            self._break_off(error)
            self._end(error.code)
        else:
            self._refuse(error)

    # ------------------------------------------------------------------------------------ the end

    def _refuse(self, error: GatewayError) -> None:
        fields = self._request_id + self._cookie + self._told
        refuse(self.exchange, error, openai=self.destination.openai, fields=fields)
        self._end(error.code)

    def _give_back(self, outcome: Outcome) -> None:
        """The one place where an attempt's lease and permit end."""
        lease, permit, replica = self.lease, self.permit, self.replica
        self.lease = self.permit = None
        if lease is not None and permit is not None and replica is not None:
            self.pool.attempt_ended(replica, lease, permit, self.key, outcome, self.sent)

    def _end(self, how: str) -> None:
        """`how`: done, cancelled, or a failure's code."""
        if self.phase == ENDED:
            return
        self.phase, self.awaits_look = ENDED, False
        self._body = b""
        if self._retry is not None:
            self._retry.cancel()
        if self.pool.hedging is not None or self._arm is not None:
            self._drop_arm()
        self.pool.left(self, how)


def outcome_of(status: int) -> Outcome:
    """Of a whole answer: what the client did wrong and back-pressure say nothing of health."""
    if status < 400:
        return Outcome.SUCCESS
    return Outcome.FAILURE if status >= 500 and status != 503 else Outcome.NEUTRAL


def retry_after(headers: Headers) -> float:
    """Seconds for which the replica wants to be left alone."""
    for name, value in headers:
        if name == b"retry-after" and value.isdigit() and len(value) < 10:
            return min(float(value), LONGEST_BUSY_S)
    return BUSY_S
