"""A relayed request's second attempt, beside the first: whichever answers first is the answer.

Owns its connection, lease and permit until it is adopted by its transit or dropped. Hears of its
upstream all the way, and tells the transit once that has adopted it. Invariant: what it holds is
given back once, by itself or by the transit, never by both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from gateway.policy.breaker import Outcome
from gateway.relay.connection import Broke, Headers, Sink, UpstreamConnection
from gateway.relay.memo import Known

if TYPE_CHECKING:
    from gateway.http_replica import HttpReplica
    from gateway.policy.breaker import Permit
    from gateway.policy.load import Lease
    from gateway.relay.transit import Transit

# An attempt that answers so is none that the client should get instead of the first one's.
BAD = 500


class Arm:
    __slots__ = (
        "_adopted",
        "_ended",
        "_transit",
        "connection",
        "lease",
        "permit",
        "replica",
        "sent",
    )

    def __init__(
        self, transit: Transit, replica: HttpReplica, lease: Lease, permit: Permit
    ) -> None:
        self._transit, self.replica, self.lease, self.permit = transit, replica, lease, permit
        self.connection: UpstreamConnection | None = None
        self.sent = 0.0
        self._adopted = self._ended = False

    def start(self, now: float) -> None:
        """On a connection that idles, or on one that is opened."""
        pool = self.replica.connections
        connection = pool.take()
        if connection is not None:
            self._send(connection, now)
            return

        def opened(result: UpstreamConnection | Exception) -> None:
            if isinstance(result, UpstreamConnection):
                if self._ended or self._adopted:
                    pool.put_back(result)
                else:
                    self._send(result, self._transit.pool.loop.time())
            elif not self._ended:
                self._transit.arm_failed(self, Outcome.FAILURE)

        pool.open_one(opened)

    def _send(self, connection: UpstreamConnection, now: float) -> None:
        self.connection, self.sent = connection, now
        transit = self._transit
        head, body = transit.request_bytes(self.replica, now)
        sink = cast("Sink", self)
        connection.begin(sink, head, body, is_head=transit.asked.is_head, complete=True)

    def adopt(self) -> None:
        """What it holds is the transit's from now on."""
        self._adopted = True

    def drop(self, outcome: Outcome) -> None:
        """The other one has answered, or nobody wants an answer."""
        if self._ended or self._adopted:
            return
        self._ended = True
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.abort()
        transit = self._transit
        transit.pool.attempt_ended(
            self.replica, self.lease, self.permit, transit.key, outcome, self.sent
        )

    # -------------------------------------------------------------------------------- its upstream

    def upstream_head(self, status: int, reason: bytes, headers: Headers) -> None:
        if self._adopted:
            self._transit.upstream_head(status, reason, headers)
        elif status >= BAD or status == 429:
            self._transit.arm_failed(self, Outcome.NEUTRAL if status == 503 else Outcome.FAILURE)
        else:
            self._transit.arm_won(self)
            self._transit.upstream_head(status, reason, headers)

    def upstream_whole(self, known: Known, body: bytes) -> None:
        if not self._adopted:
            self._transit.arm_won(self)
        self._transit.upstream_whole(known, body)

    def upstream_failed(self, how: Broke, detail: str) -> None:
        if self._adopted:
            self._transit.upstream_failed(how, detail)
        else:
            self.connection = None
            self._transit.arm_failed(self, Outcome.FAILURE)

    def upstream_interim(self, status: int, headers: Headers) -> None:
        if self._adopted:
            self._transit.upstream_interim(status, headers)

    def upstream_body(self, chunk: bytes) -> None:
        self._transit.upstream_body(chunk)

    def upstream_read(self) -> None:
        if self._adopted:
            self._transit.upstream_read()

    def upstream_upgraded(self, early: bytes) -> None:
        self._transit.upstream_upgraded(early)

    def upstream_writable(self) -> None: ...

    def upstream_done(self) -> None:
        self._transit.upstream_done()
