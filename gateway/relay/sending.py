"""The request's half of a transit: its head and its body, on a connection to one upstream.

Opens the connection where none idles, keeps what may have to be sent again, and holds the client
back when the upstream is slow. To which replica, and what follows when that fails, is decided in
`transit`. Invariant: what was kept is sent from its beginning to each upstream; what was not kept,
to one only, in order and complete.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from gateway.lane import Exchange
from gateway.policy.routing import NO_KEY, RoutingKey
from gateway.relay.answering import CONNECTING, HEAD, Answering
from gateway.relay.connection import Sink, UpstreamConnection
from gateway.relay.head import CHUNKED, NO_BODY, request_end
from gateway.relay.pool import PoolExhausted

if TYPE_CHECKING:
    from gateway.http_replica import HttpReplica
    from gateway.policy.concurrency import ConcurrencyLimit
    from gateway.relay.asked import Asked
    from gateway.relay.destination import Destination

# Upstreams close idle connections after 2 s and more. What must not be sent twice goes on one that
# has idled for less, or on a new one.
FRESH_S = 1.0
_LAST_CHUNK = b"0\r\n\r\n"


class Sending(Answering):
    """`body` is what has come of it; unless `complete`, more does. `began` is the loop's time."""

    __slots__ = (
        "_attempt",
        "_body",
        "_complete",
        "_cookie",
        "_length",
        "_replayable",
        "_request_id",
        "began",
        "deadline",
        "hold",
        "key",
        "pool",
        "priority",
        "replica",
        "sent",
        "tenant",
    )

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
        super().__init__(destination, exchange, asked)
        self.pool = destination.pool
        self._body, self._complete = body, complete
        self._replayable = True
        length = exchange.head.framing.length
        if complete:
            self._length = len(body) if length else NO_BODY
        else:
            self._length = length if length >= 0 else CHUNKED
        self._cookie = b""
        if session is None and destination.cookie is not None:
            session, self._cookie = destination.new_session(exchange)
        self.key = NO_KEY if session is None else RoutingKey(session)
        self._request_id = asked.request_id or destination.ids.new()
        tenant = exchange.tenant
        self.tenant = "" if tenant is None else tenant.name
        self.priority = asked.priority if tenant is None else tenant.priority(asked.priority)
        self.began = exchange.arrived
        self.deadline = self.began + min(asked.deadline_s, destination.timeout_s)
        self.replica: HttpReplica | None = None
        self.hold: ConcurrencyLimit | None = None  # its place in the pool's adaptive limit
        self.sent = 0.0
        self._attempt = 0

    @property
    def _repeatable(self) -> bool:
        return self.asked.idempotent or self.pool.repeats

    def not_connected(self, why: Exception) -> None:
        """No connection could be had for this attempt."""
        raise NotImplementedError

    def _listen(self) -> None:
        """For what is still to come of the body, once a replica takes it."""
        exchange = self.exchange
        if self._complete:
            exchange.on_body = exchange.on_body_end = None
        else:
            exchange.on_body, exchange.on_body_end = self._client_body, self._client_end
            exchange.pause_body()

    def _dispatch(self, replica: HttpReplica, now: float) -> None:
        """On a connection that idles, or on one that is opened."""
        self.replica = replica
        connection = replica.connections.take(0.0 if self._repeatable else now - FRESH_S)
        if connection is not None:
            self._send(connection, now)
            return
        self.phase = CONNECTING
        self._attempt += 1
        pool, attempt = replica.connections, self._attempt

        def opened(result: UpstreamConnection | Exception) -> None:
            wanted = self.phase == CONNECTING and self._attempt == attempt
            if isinstance(result, UpstreamConnection):
                if wanted:
                    self._send(result, self.pool.loop.time())
                else:
                    pool.put_back(result)
                return
            if not isinstance(result, PoolExhausted):
                replica.unreachable(str(result) or "it took too long to connect")
            if wanted:
                self.not_connected(result)

        pool.open_one(opened)

    def _send(self, connection: UpstreamConnection, now: float) -> None:
        replica, asked = self.replica, self.asked
        assert replica is not None
        head, _ = self.request_bytes(replica, now)
        self.connection, self.phase = connection, HEAD
        self.sent = self._since = now
        self._moved = False
        body = self._body
        if self._length == CHUNKED and body:
            body = b"%x\r\n%b\r\n" % (len(body), body)
        complete = self._complete
        sink = cast("Sink", self)  # every transit is one
        connection.begin(sink, head, body, is_head=asked.is_head, complete=complete)
        if not complete:
            self._replayable, self._body = False, b""
            if connection.writable:
                self.exchange.resume_body()

    def request_bytes(self, replica: HttpReplica, now: float) -> tuple[bytes, bytes]:
        """The head for this replica, and what is there of the body."""
        asked = self.asked
        left_ms = max(1, int((self.deadline - now) * 1e3))
        extra = b"x-deadline-ms: %d\r\n" % left_ms
        if not asked.request_id:
            extra += self._request_id
        head = asked.start(replica.host, replica.prefix)
        head += request_end(self.exchange.peer.encode(), self._length, extra)
        return head, self._body

    def _client_body(self, piece: bytes) -> None:
        """More of a request that is passed on as it comes."""
        self._moved = True
        connection = self.connection
        if connection is None:
            if self.phase < HEAD:
                self._body += piece  # it was on its way when the client was paused
            return
        if self._length == CHUNKED:
            piece = b"%x\r\n%b\r\n" % (len(piece), piece)
        if not connection.send(piece):
            self.exchange.pause_body()

    def _client_end(self) -> None:
        self._complete = True
        connection = self.connection
        if connection is not None:
            if self._length == CHUNKED:
                connection.send(_LAST_CHUNK)
            connection.end_request()
        elif self.phase < HEAD and self._length == CHUNKED:
            self._length = len(self._body)

    def upstream_writable(self) -> None:
        self._moved = True
        self.exchange.resume_body()

    def _close_upstream(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.abort()
