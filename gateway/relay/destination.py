"""Where relayed requests go, and on which terms: one route to one pool, or /v1 to it.

Owns the memory of heads that were read for it. It starts transits and keeps none. Invariant: what
is remembered is bounded, whatever clients send.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

from gateway.errors import GatewayError
from gateway.lane import Exchange, field
from gateway.policy.prefix import prefix_blocks, prompt_of
from gateway.policy.session import SessionSources
from gateway.relay.asked import Asked
from gateway.relay.reply import refuse
from gateway.relay.transit import Transit
from gateway.relay.usage import BYTES_PER_TOKEN, Meter, reserve

if TYPE_CHECKING:
    from gateway.http_pool import HttpPool
    from gateway.tenants import Tenant

HEADS = 512


class Ids:
    """Request ids for clients that bring none: unique in a fleet, and cheap."""

    def __init__(self) -> None:
        self._start = os.urandom(6).hex()
        self._next = count(1).__next__

    def new(self) -> bytes:
        return b"x-request-id: %b-%x\r\n" % (self._start.encode(), self._next())


class Destination:
    """`openai`: whether clients read errors in OpenAI's form. `strip`: characters of the path that
    the upstream does not see. `sessions` and `timeout_s` are the pool's where a route has none.
    `public`: no key is needed there."""

    def __init__(
        self,
        pool: HttpPool,
        ids: Ids,
        *,
        openai: bool,
        strip: int = 0,
        sessions: Sequence[str] | None = None,
        timeout_s: float | None = None,
        public: bool = False,
    ) -> None:
        relay = pool.config.relay
        # Ours first: the application's own cookies may come and go, as at a login.
        cookie = [f"cookie:{relay.cookie}"] if relay.cookie else []
        self.pool, self.openai, self.ids = pool, openai, ids
        sources = [*cookie, *(sessions or relay.sessions)]
        self.sessions = SessionSources(sources)
        # What of a JSON body the session may be in.
        self.fields = frozenset(s.removeprefix("body:") for s in sources if s.startswith("body:"))
        self.cookie = relay.cookie
        self.replay = relay.replay
        self.timeout_s = timeout_s or pool.config.timeout_ms / 1e3
        self.public = public
        self._by_prefix = pool.config.routing == "prefix"
        self._strip, self._key = strip, _key(relay.key_env)
        self._asked: dict[object, Asked] = {}  # by the lane's heads

    @property
    def model(self) -> str:
        return self.pool.name

    @property
    def listed(self) -> bool:
        """On /v1, if it is there at all."""
        return True

    def new_session(self, exchange: Exchange) -> tuple[str, bytes]:
        """A session for a client that has none, and the header line that tells it."""
        value = os.urandom(12).hex()
        secure = "; Secure" if exchange.tls else ""
        cookie = f"{self.cookie}={value}; Path=/; HttpOnly; SameSite=Lax{secure}"
        return f"cookie:{self.cookie}={value}", field(b"set-cookie", cookie)

    def open(
        self,
        exchange: Exchange,
        body: bytes,
        fields: Mapping[str, Any] | None = None,
        *,
        complete: bool,
    ) -> None:
        """Begin to relay. `body`: what is there of it. `fields`: of its JSON object, where it was
        looked into."""
        asked = self._asked.get(exchange.head)
        if asked is None:
            try:
                asked = Asked(exchange, self.sessions, self._strip, self._key)
            except GatewayError as error:
                refuse(exchange, error, openai=self.openai)
                return
            if len(self._asked) >= HEADS:
                self._asked.clear()
            self._asked[exchange.head] = asked
        tenant, meter = exchange.tenant, None
        if tenant is not None:
            try:
                meter, body = self._admit(exchange, tenant, body, complete=complete)
            except GatewayError as error:
                refuse(exchange, error, openai=self.openai, fields=asked.request_id)
                return
        session = asked.session
        if fields and not self.fields.isdisjoint(fields):
            session = self.sessions.key(exchange.header, exchange.query, fields)
        transit = Transit(self, exchange, asked, session, body, complete=complete)
        if self._by_prefix and body:
            transit.key = transit.key._replace(prefix=prefix_blocks(prompt_of(body)))
        transit.meter = meter
        transit.begin()

    def _admit(
        self, exchange: Exchange, tenant: Tenant, body: bytes, *, complete: bool
    ) -> tuple[Meter | None, bytes]:
        """Raises GatewayError."""
        if not self.openai:
            tenant.enter(exchange, self.pool.name)
            return None, body
        length = exchange.head.framing.length
        if not tenant.limited:
            visit = tenant.enter(exchange, self.pool.name)
            return Meter(visit, max(len(body), length) / BYTES_PER_TOKEN, strips=False), body
        found = reserve(body, length, complete=complete)
        visit = tenant.enter(exchange, self.pool.name, found.tokens)
        return Meter(visit, found.prompt, strips=found.strips), found.body


def _key(variable: str | None) -> bytes:
    """The header line with the replicas' own key, which the environment has."""
    value = os.environ.get(variable, "") if variable else ""
    return field(b"authorization", f"Bearer {value}") if value else b""
