"""How an HTTP request becomes a call: its terms, its body as it came, and where the answer goes.

Owns the memory of heads that were read, for all models of a worker. It starts calls and keeps none.
Invariants: the body goes to the replica unchanged; what is remembered is bounded, whatever clients
send.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import count
from math import inf
from typing import Any

from backends.wire import GENERATIVE
from gateway.errors import BadRequest, GatewayError, NotFound, Unsupported
from gateway.generation.call import LiveCall
from gateway.generation.pool import CallPool
from gateway.generation.reply import Backlog, HttpReply
from gateway.generation.terms import FIELDS, Head, read_head, read_wants
from gateway.lane import Exchange, field
from gateway.oip.versions import find
from gateway.policy.prefix import prefix_blocks, prompt_of
from gateway.policy.routing import RoutingKey
from gateway.policy.session import SessionSources
from gateway.policy.tokens import Estimate
from gateway.relay.reply import refuse
from gateway.tenants import Visit

HEADS = 512


class Doors:
    """What the doors of one worker share."""

    def __init__(self) -> None:
        self.backlog = Backlog()
        self._heads: dict[object, Head] = {}  # by the lane's heads
        self._start = os.urandom(6).hex()
        self._next = count(1).__next__

    def head(self, exchange: Exchange) -> Head:
        """Raises BadRequest."""
        known = self._heads.get(exchange.head)
        if known is None:
            known = read_head(exchange)
            if len(self._heads) >= HEADS:
                self._heads.clear()
            self._heads[exchange.head] = known
        return known

    def request_id(self) -> str:
        return f"{self._start}-{self._next():x}"


class Door:
    """To one model. `fields`: what of a body's JSON object is looked at."""

    def __init__(self, pool: CallPool, doors: Doors) -> None:
        self.pool, self._doors = pool, doors
        sources = pool.config.generation.sessions
        self._sessions = SessionSources(sources)
        bodies = {s.removeprefix("body:") for s in sources if s.startswith("body:")}
        self.fields = FIELDS | bodies

    def call(
        self,
        exchange: Exchange,
        surface: str,
        body: bytes,
        fields: Mapping[str, Any],
        *,
        openai: bool,
        version: str | None = None,
        timeout_unit_s: float = 1.0,
    ) -> None:
        """Begin a call that answers this exchange. `version`: as the path pins it; a `timeout` in
        the body is in `timeout_unit_s`."""
        lines = b""
        try:
            head = self._doors.head(exchange)
            request_id = head.request_id or self._doors.request_id()
            lines = head.terms.echo or field(b"x-request-id", request_id)
            pinned = self.pin(_agreed(head.terms.version, version))
            self.check(surface, openai=openai)
            wants = read_wants(fields)
            choices = wants.choices if surface in GENERATIVE else 0
            estimate = self.pool.work.estimate(len(body), wants.limit, choices)
            visit = self._enter(exchange, estimate)
        except GatewayError as error:
            refuse(exchange, error.detached(), openai=openai, fields=lines)
            return
        generation = self.pool.config.generation
        reply = HttpReply(
            exchange,
            lines,
            self._doors.backlog,
            openai=openai,
            most=generation.unsent,
            heartbeat_s=generation.heartbeat_ms / 1e3,
            stream=wants.stream or surface == "generate_stream",
            timing=head.terms.timing,
        )
        limit_s = min(
            self.pool.config.call_timeout_ms / 1e3,
            head.terms.deadline_s,
            wants.timeout * timeout_unit_s,
            # Who reads no stream hears nothing before its end.
            inf if wants.stream else head.silence_s,
        )
        tenant = exchange.tenant
        priority = head.terms.priority
        call = LiveCall(
            self.pool,
            reply,
            surface,
            body,
            began=exchange.arrived,
            estimate=estimate,
            key=self.key(
                self._sessions.key(exchange.header, exchange.query, fields), body, estimate
            ),
            deadline=exchange.arrived + limit_s,
            silence_s=head.silence_s,
            priority=priority if tenant is None else tenant.priority(priority),
            version=pinned,
            request_id=request_id,
            tenant="" if tenant is None else tenant.name,
            visit=visit,
        )

        def gone() -> None:
            call.gone()
            reply.gone()

        exchange.on_gone = gone
        call.begin()

    def _enter(self, exchange: Exchange, estimate: Estimate) -> Visit | None:
        """Whose limits it counts against, reserving what it may use. Raises GatewayError."""
        tenant = exchange.tenant
        if tenant is None:
            return None
        tokens = estimate.tokens_in + estimate.tokens_out if tenant.limited else 0.0
        return tenant.enter(exchange, self.pool.name, tokens)

    def key(self, session: str | None, body: bytes, estimate: Estimate) -> RoutingKey:
        prefix = prefix_blocks(prompt_of(body))
        return RoutingKey(session, prefix, int(estimate.tokens_in), estimate.tokens_out)

    def session_of(self, named: str | None, fields: Mapping[str, Any]) -> str | None:
        """Of a request without a head: as its client names it, or as the body does."""

        def header(name: bytes) -> bytes | None:
            return named.encode() if named is not None and name == b"x-session-id" else None

        return self._sessions.key(header, "", fields)

    def pin(self, version: str | None) -> str | None:
        """The full name of a version."""
        return None if version is None else find(version, self.pool.versions) or version

    def check(self, surface: str, *, openai: bool) -> None:
        """Raises what a model is to be refused with that does not answer calls of this form."""
        pool = self.pool
        if surface in pool.surfaces:
            return
        if not pool.heard:
            raise pool.unready()
        offered = ", ".join(sorted(pool.surfaces)) or "tensors only"
        why = f"model {pool.name!r} does not serve {surface}; it serves {offered}"
        raise NotFound(why, param="model") if openai else Unsupported(why)


def _agreed(header: str | None, path: str | None) -> str | None:
    """The version that a request pins. Raises BadRequest."""
    if header is not None and path not in (None, header):
        raise BadRequest(
            f"header x-model-version is {header!r}, the path names {path!r}; send one of them",
            param="x-model-version",
        )
    return header or path
