"""Whose key a request carries: the lane's guard, asked once for each request's head.

Owns the hashes of the configured keys and which paths need none. A request without a good key gets
no further than its head: no body is read for it. What the tenant may do is decided in `tenants`.
Invariant: a head that was let pass under one configuration is looked at again under the next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from gateway.config_access import KeyConfig
from gateway.errors import GatewayError, Unauthorized
from gateway.lane import Exchange, Handler, RequestHead
from gateway.relay.asked import CREDENTIALS
from gateway.relay.reply import refuse
from gateway.tenants import Tenant, Tenants

AUTHORIZATION = b"authorization"
# Pages cannot set headers on a WebSocket: they offer the key as one more subprotocol.
SUBPROTOCOL = b"bearer."
PATH_WS = "/ws"
# Probes carry no key; the dashboard's files hold nothing, and ask for what they show.
OPEN = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/"})
OPEN_BELOW = "/static/"

CHALLENGE = b'www-authenticate: Bearer realm="penstock"\r\n'
HOW = "send the key of this gateway: `authorization: Bearer KEY`"


class Gate:
    """`route(path, host)`: whether a route leads there, and whether that is public;
    `openai(path, host)`: whether clients there read OpenAI's errors."""

    def __init__(
        self,
        tenants: Tenants,
        *,
        route: Callable[[str, bytes | None], bool | None],
        openai: Callable[[str, bytes | None], bool],
    ) -> None:
        self._tenants, self._route, self._openai = tenants, route, openai
        self._by_digest: dict[bytes, Tenant] = {}
        self._epoch: object = object()
        self.refused = 0

    def apply(self, keys: Sequence[KeyConfig]) -> None:
        """The tenants have been made. Heads that were looked at before are looked at anew."""
        self._epoch = object()
        self._by_digest = {
            bytes.fromhex(digest): self._tenants[key.name]
            for key in keys
            for digest in key.key_sha256
        }

    @property
    def closed(self) -> bool:
        """Whether a key is needed at all."""
        return bool(self._by_digest)

    def __call__(self, head: RequestHead, handler: Handler | None) -> Handler | None:
        """Who answers: `handler`, or a refusal."""
        if head.seen is self._epoch:
            return handler
        try:
            head.tenant = self._look(head)
        except Unauthorized as error:
            self.refused += 1
            host = _first(head, b"host")
            return Refusal(error.detached(), CHALLENGE, openai=self._openai(head.path, host))
        head.seen = self._epoch
        return handler

    def _look(self, head: RequestHead) -> Tenant | None:
        """The tenant; None on a path that is open to all. Raises Unauthorized."""
        public = self._route(head.path, _first(head, b"host"))
        if public is None:
            public = head.path in OPEN or _below_static(head.path)
        given = credential(head)
        if given is None:
            if public:
                return None
            raise Unauthorized(f"there is no key in the request; {HOW}")
        # Looked up by its hash: how long that takes says nothing of the keys.
        found = self._by_digest.get(hashlib.sha256(given).digest())
        if found is None and not public:
            raise Unauthorized(f"the key is not known here; {HOW}")
        return found


def _below_static(path: str) -> bool:
    return path.startswith(OPEN_BELOW) and ".." not in path and "%" not in path


def credential(head: RequestHead) -> bytes | None:
    """The key that a request carries, whatever it is worth."""
    for name, value in head.headers:
        if name in CREDENTIALS:
            if name != AUTHORIZATION:
                return value
            scheme, _, key = value.partition(b" ")
            if scheme.lower() == b"bearer":
                return key.strip()
    if head.path == PATH_WS:
        for name, value in head.headers:
            if name == b"sec-websocket-protocol":
                for token in value.split(b","):
                    if token.strip().startswith(SUBPROTOCOL):
                        return token.strip().removeprefix(SUBPROTOCOL)
    return None


def _first(head: RequestHead, wanted: bytes) -> bytes | None:
    return next((value for name, value in head.headers if name == wanted), None)


class Refusal:
    """Answers at once, from the head alone."""

    __slots__ = ("_error", "_fields", "_openai")
    streams = True

    def __init__(self, error: GatewayError, fields: bytes, *, openai: bool) -> None:
        self._error, self._fields, self._openai = error, fields, openai

    def __call__(self, exchange: Exchange) -> None:
        refuse(exchange, self._error, openai=self._openai, fields=self._fields)
