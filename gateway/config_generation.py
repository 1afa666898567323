"""The keys of models that generate: who asks for them by which name, and what a stream may cost.

Owns these keys, their defaults and their meaning, as `config` does the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gateway.config_options import Number, Size, Texts, Whole, option
from gateway.config_relay import HOUR_MS, wrong_sessions
from gateway.policy.session import DEFAULT_SOURCES

_SESSION = r"(?:header|cookie|query|body):\S{1,128}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationConfig:
    """`[models.generation]`: of native replicas that answer chat, completions and the like."""

    names: tuple[str, ...] = option(
        Texts("names as clients of /v1 send them"),
        "what clients of /v1 ask for; left out, the model's name",
        default=(),
    )
    sessions: tuple[str, ...] = option(
        Texts("sources such as header:x-session-id, cookie:NAME, query:NAME, body:FIELD", _SESSION),
        "where a request's session is found; the first that it has counts",
        default=DEFAULT_SOURCES,
    )
    first_ms: float | None = option(
        Number(above=0.0, most=HOUR_MS),
        "a replica must begin its answer within; left out, by the deadline",
        default=None,
    )
    idle_ms: float = option(
        Number(above=0.0, most=HOUR_MS), "a stream may stall for", default=60_000.0
    )
    heartbeat_ms: float = option(
        Number(above=0.0, most=HOUR_MS),
        "a comment goes into a stream that is silent for so long",
        default=15_000.0,
    )
    unsent: int = option(
        Size(),
        "a client that leaves so much of its stream untaken loses the rest of it",
        default=2**20,
    )
    expected_tokens: int = option(
        Whole(1, 10_000_000),
        "the length of an answer, until those that have ended tell a better one",
        default=256,
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from wrong_sessions(self.sessions)
