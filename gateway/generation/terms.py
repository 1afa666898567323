"""What a call asks of the gateway beside its content: from its head, its path and its body.

Owns the names of the body's fields that the gateway looks at. Pure. Invariant: the body itself is
never changed; a field that is wrong is left for the replica to refuse, which knows its form.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, isfinite
from typing import Any, NamedTuple

from gateway.lane import Exchange
from gateway.oip.terms import Terms, read_terms
from gateway.relay.asked import read_seconds

SILENCE = b"x-stainless-read-timeout"
_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
# Beside those that name a session.
FIELDS = frozenset({"model", "stream", "n", "best_of", "timeout", "parameters", *_LIMITS})
_MOST_TOKENS, _MOST_CHOICES = 10_000_000, 1024


class Head(NamedTuple):
    """`silence_s`: how long the client waits for the next byte, infinite where it does not say."""

    terms: Terms
    silence_s: float
    request_id: str


class Wants(NamedTuple):
    """What a body says of the work. `limit`: of one answer's tokens, 0 for none; `timeout`: as it
    was given, infinite without one."""

    stream: bool = False
    limit: int = 0
    choices: int = 1
    timeout: float = inf


def read_head(exchange: Exchange) -> Head:
    """Raises BadRequest."""
    said = exchange.header(SILENCE)
    silence_s = inf if said is None else read_seconds(SILENCE, said, 1.0)
    request_id = (exchange.header(b"x-request-id") or b"").decode("latin-1")
    return Head(read_terms(exchange.headers), silence_s, request_id)


def read_wants(fields: Mapping[str, Any]) -> Wants:
    """`fields`: of the body's JSON object."""
    limit = 0
    for name in _LIMITS:
        value = fields.get(name)
        if type(value) is int and 0 < value <= _MOST_TOKENS:
            limit = value
            break
    choices = 1
    for name in ("n", "best_of"):
        value = fields.get(name)
        if type(value) is int and 0 < value <= _MOST_CHOICES:
            choices = max(choices, value)
    timeout: Any = fields.get("timeout")
    known = type(timeout) in (int, float) and isfinite(timeout) and timeout > 0
    return Wants(fields.get("stream") is True, limit, choices, timeout if known else inf)
