"""The keys of a canary: which replicas try a version first, on how many requests, and who decides.

Owns these keys, their defaults and their meaning, as `config` does the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gateway.config_options import Choice, Number, Text, Whole, option

DAY_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryConfig:
    """`[models.canary]`: replicas whose own file follows `channel` get a share of the requests
    while their version differs from the others'."""

    channel: str | None = option(
        Text("the name of a channel", r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"),
        "replicas that follow it try its version; left out, there is no canary",
        default=None,
    )
    share: float = option(
        Number(above=0.0, most=1.0), "of the requests that pin no version", default=0.1
    )
    by: str = option(
        Choice("session", "request"),
        "session: a session keeps its version (requests without one are shared out one by one)",
        default="session",
    )
    decide: str = option(
        Choice("auto", "manual"),
        "auto: promoted or rolled back by the rules below; manual: by an operator",
        default="auto",
    )
    after_s: float = option(
        Number(least=0.0, most=30 * DAY_S), "decided no sooner than after", default=60.0
    )
    requests: int = option(
        Whole(1, 1_000_000_000), "decided no sooner than after so many of its answers", default=200
    )
    errors: float = option(
        Number(least=0.0, most=1.0),
        "its share of failed requests may be so much above that of the others",
        default=0.01,
    )
    quantile: float = option(
        Number(above=0.0, most=0.999), "of the latencies that are compared", default=0.95
    )
    slower: float = option(
        Number(least=1.0, most=1000.0), "that latency may be so many times the others'", default=1.5
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.channel is None and self != CanaryConfig():
            yield "channel", "expected the name of the channel that the trying replicas follow"
