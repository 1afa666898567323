"""The keys of what is relayed: how a model of http replicas is used, and which paths lead to it.

Owns these keys, their defaults and their meaning, as `config` does the others. Knows nothing of
sockets: routes are matched in `relay.routes`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gateway.config_options import Choice, Flag, Number, Size, Text, Texts, Whole, option
from gateway.config_source import table
from gateway.config_tls import ReplicaTls
from gateway.policy.session import SessionSources

HOUR_MS = 3_600_000.0
_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}"
# Client-made keys first; the fields that OpenAI clients have for this after them.
SESSIONS = ("header:x-session-id", "cookie:session", "body:prompt_cache_key", "body:user")
_SESSION = r"(?:header|cookie|query|body):\S{1,128}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayConfig:
    """`[models.relay]`: what requests to http replicas may do and take."""

    api: str = option(
        Choice("openai", "web"),
        "openai: /v1 offers the model by its names; web: only [[routes]] lead to it",
        default="openai",
    )
    names: tuple[str, ...] = option(
        Texts("names as clients of /v1 send them"),
        "what clients of /v1 ask for, as the replicas know it; left out, the model's name",
        default=(),
    )
    sessions: tuple[str, ...] = option(
        Texts("sources such as header:x-session-id, cookie:NAME, query:NAME, body:FIELD", _SESSION),
        "where a request's session is found; the first that it has counts",
        default=SESSIONS,
    )
    cookie: str | None = option(
        Text("the name of a cookie", _TOKEN),
        "set this cookie for clients without a session, so that they keep their replica",
        default=None,
    )
    strict: bool = option(
        Flag(), "a session never leaves a healthy replica, however loaded", default=False
    )
    host: str = option(
        Choice("client", "replica"), "whose Host field replicas get", default="client"
    )
    connect_ms: float = option(
        Number(above=0.0, most=HOUR_MS), "a connection must be made within", default=2_000.0
    )
    head_ms: float | None = option(
        Number(above=0.0, most=HOUR_MS),
        "an answer's head must come within; left out, by the deadline",
        default=None,
    )
    first_ms: float | None = option(
        Number(above=0.0, most=HOUR_MS),
        "its first byte must follow the head within; left out, by the deadline",
        default=None,
    )
    idle_ms: float = option(
        Number(above=0.0, most=HOUR_MS), "an answer's body may stall for", default=60_000.0
    )
    heartbeat_ms: float = option(
        Number(above=0.0, most=HOUR_MS),
        "a comment goes into an event stream that is silent for so long",
        default=15_000.0,
    )
    replay: int = option(
        Size(), "request bodies up to this size can be sent again elsewhere", default=256 * 2**10
    )
    connections: int = option(
        Whole(1, 65_536), "connections to one replica from one worker", default=4_096
    )
    key_env: str | None = option(
        Text("the name of an environment variable", r"[A-Za-z_][A-Za-z0-9_]*"),
        "its value goes to the replicas as `authorization: Bearer …`, in place of the client's",
        default=None,
    )

    tls: ReplicaTls = table(ReplicaTls)  # noqa: RUF009 - a field

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from wrong_sessions(self.sessions)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteConfig:
    """`[[routes]]`: paths that lead to a model of http replicas; the longest that fits counts."""

    path: str = option(Text("a path that begins with /", r"/[!-~]*"), "it and everything below it")
    host: str | None = option(
        Text("a host's name without a port", r"[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]"),
        "only for this Host; left out, any",
        default=None,
    )
    model: str = option(Text("the name of a model with http replicas"), "where requests go")
    strip_prefix: bool = option(
        Flag(), "the replica sees the path without the route's", default=False
    )
    timeout_ms: float | None = option(
        Number(above=0.0, most=1e8), "the deadline here; left out, the model's", default=None
    )
    public: bool = option(
        Flag(), "where there are [[keys]]: anybody may use it without one", default=False
    )
    sessions: tuple[str, ...] | None = option(
        Texts("sources such as header:x-session-id, cookie:NAME, query:NAME, body:FIELD", _SESSION),
        "where a request's session is found; left out, the model's",
        default=None,
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        if "?" in self.path or "#" in self.path or "//" in self.path:
            yield "path", "expected a plain path, without ?, # and //"
        if self.path != "/" and self.path.endswith("/"):
            yield (
                "path",
                f'expected no / at its end: "{self.path.rstrip("/")}" has all below it too',
            )
        yield from wrong_sessions(self.sessions or ())

    @property
    def place(self) -> tuple[str, str]:
        return self.path, (self.host or "").lower()


def wrong_sessions(sessions: Sequence[str]) -> Iterator[tuple[str, str]]:
    try:
        SessionSources(sessions)
    except ValueError as error:
        yield "sessions", str(error)


def wrong_routes(
    routes: Sequence[RouteConfig], http_models: Sequence[str]
) -> Iterator[tuple[int, str, str]]:
    """(position, key, what is wrong) of routes that a whole file shows."""
    taken: dict[tuple[str, str], int] = {}
    for index, route in enumerate(routes):
        if route.model not in http_models:
            known = ", ".join(http_models) or "none"
            yield index, "model", f"expected a model with http replicas: {known}"
        if route.place in taken:
            yield index, "path", f"routes[{taken[route.place]}] has the same path and host"
        taken.setdefault(route.place, index)
