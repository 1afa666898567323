"""What a load is and what it found, as they travel to and from the generator's process.

Owns both forms. Without a rate and a trace it is a closed loop: every connection sends when it was
answered. With one it is an open loop: requests have intended times, whatever the answers take.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from bench.load.histogram import Histogram

# A generator that uses this much of a core, or sends this late, measures itself.
BUSY, LATE_S = 0.9, 0.001
MODES = ("http", "sse", "openai", "ws")
ARRIVALS = ("poisson", "constant", "bursts")
HISTOGRAMS = ("latency", "late", "first", "gaps")
SCHEMES = {"ws": ("ws", "wss")}
# What the generator writes itself.
OWN_HEADERS = frozenset({"content-length", "transfer-encoding", "connection"})
_VISIBLE = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSpec:
    """Seconds throughout. Requests in the first `warmup_s` are sent and not counted. `mode`: what
    an answer is (MODES); `arrivals`: of a rate (ARRIVALS); `trace`: a file of `load.trace`,
    replayed `speed` times as fast, of which this process takes `part` of `parts`. `timing`: ask
    Penstock with each request how many rows the device executed together. `insecure`: a TLS
    certificate is not checked."""

    url: str
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""
    connections: int = 64
    rate: float | None = None
    arrivals: str = "poisson"
    seconds: float = 10.0
    warmup_s: float = 0.0
    timeout_s: float = 30.0
    timing: bool = False
    seed: int = 1
    mode: str = "http"
    trace: str | None = None
    speed: float = 1.0
    insecure: bool = False
    part: int = 0
    parts: int = 1

    def __post_init__(self) -> None:
        if self.mode not in MODES or self.arrivals not in ARRIVALS:
            known = f"{', '.join(MODES)}; {', '.join(ARRIVALS)}"
            raise ValueError(f"no mode {self.mode!r} or arrivals {self.arrivals!r}: {known}")
        self._check_url()
        for name in self.headers:
            if name.lower() in OWN_HEADERS:
                raise ValueError(f"header {name!r} is the generator's own: leave it out")
        if self.trace is not None and (self.rate is not None or self.warmup_s):
            raise ValueError("a trace has its own times: leave the rate and the warm-up out")
        if not 0 < self.speed < math.inf:
            raise ValueError(f"the speed must be above 0, got {self.speed:g}")
        if not 0 < self.seconds < math.inf or not 0 < self.timeout_s < math.inf:
            found = f"{self.seconds:g} and {self.timeout_s:g}"
            raise ValueError(f"the seconds and the timeout must be above 0, got {found}")
        if not 0 <= self.warmup_s < math.inf:
            raise ValueError(f"the warm-up must not be below 0, got {self.warmup_s:g}")
        if self.method == "HEAD":
            raise ValueError("HEAD is not supported: its answers have lengths without bodies")
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise ValueError(f"the rate must be above 0, got {self.rate:g}")
        if self.connections < 1:
            raise ValueError(f"at least 1 connection is needed, got {self.connections}")

    def _check_url(self) -> None:
        """Raises ValueError."""
        parts = urlsplit(self.url)
        schemes = SCHEMES.get(self.mode, ("http", "https"))
        if (
            parts.scheme not in schemes
            or not parts.hostname
            or not _VISIBLE.fullmatch(self.url)
            or parts.port == 0
        ):
            example = f"{schemes[0]}://127.0.0.1:8080/"
            raise ValueError(f"expected a URL such as {example!r}, got {self.url!r}")
        if "@" in parts.netloc:
            raise ValueError("the URL holds a password: send it as an authorization header")

    def share(self, index: int, count: int) -> LoadSpec:
        """The part of one of `count` processes: of the rate and of the connections."""
        extra = 1 if index < self.connections % count else 0
        return replace(
            self,
            connections=self.connections // count + extra,
            rate=None if self.rate is None else self.rate / count,
            seed=self.seed + index * 7919,  # other arrivals in each
            part=index,
            parts=count,
        )

    @property
    def open_loop(self) -> bool:
        return self.rate is not None or self.trace is not None

    def to_json(self) -> dict[str, Any]:
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**found, "body": base64.b64encode(self.body).decode()}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> LoadSpec:
        return cls(**{**found, "body": base64.b64decode(found["body"])})


@dataclass(slots=True)
class LoadReport:
    """Invariant once a load ended: sent = ok + other statuses + errors. `latency` holds requests
    answered with 2xx and, at the time that was given up, those never answered; from the intended
    time in an open loop. `refused`: attempts to open a connection
    anew that failed. `late`: how long after its intended time the generator got to a request,
    which is its own fault. `backlog`: the most requests that waited for a free connection. `timed`
    answers told their batch; each is 1/rows of one, and `batches` is the sum of that. Of streams:
    how many `events` came, the time to the `first` of each, and the `gaps` between those after it
    (events that came together are one gap). `tokens`: of completions, as the server counts them.
    `interrupted`: it was ended before its time. `said`: what the first answer of each bad status
    said, or its end."""

    seconds: float = 0.0
    sent: int = 0
    ok: int = 0
    received: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    reconnects: int = 0
    refused: int = 0
    backlog: int = 0
    timed: int = 0
    batches: float = 0.0
    events: int = 0
    tokens: int = 0
    interrupted: bool = False
    cpu_share: float = 0.0
    latency: Histogram = field(default_factory=Histogram)
    late: Histogram = field(default_factory=Histogram)
    first: Histogram = field(default_factory=Histogram)
    gaps: Histogram = field(default_factory=Histogram)

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return self.ok / self.seconds if self.seconds else 0.0

    @property
    def mean_batch(self) -> float | None:
        """Rows executed together, if the answers told and each request had one row."""
        return self.timed / self.batches if self.batches else None

    @property
    def failed(self) -> int:
        bad = sum(count for status, count in self.statuses.items() if status[0] != "2")
        return bad + sum(self.errors.values())

    @property
    def limit(self) -> str | None:
        """How the generator itself was the limit, or None."""
        if self.cpu_share > BUSY:
            return f"the generator used {self.cpu_share:.0%} of a core"
        late = self.late.percentile(99)
        if late > LATE_S:
            return f"the generator sent 1 % of its requests more than {late * 1e3:.1f} ms late"
        return None

    def add(self, other: LoadReport) -> None:
        """Another process's part of the same load."""
        self.seconds = max(self.seconds, other.seconds)
        for name in (
            "sent",
            "ok",
            "received",
            "reconnects",
            "refused",
            "backlog",
            "timed",
            "batches",
            "events",
            "tokens",
        ):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for mine, its in ((self.statuses, other.statuses), (self.errors, other.errors)):
            for key, count in its.items():
                mine[key] = mine.get(key, 0) + count
        self.said = other.said | self.said
        self.cpu_share = max(self.cpu_share, other.cpu_share)
        self.interrupted |= other.interrupted
        for name in HISTOGRAMS:
            getattr(self, name).add(getattr(other, name))

    def to_json(self) -> dict[str, Any]:
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**found, **{name: getattr(self, name).to_json() for name in HISTOGRAMS}}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> LoadReport:
        histograms = {name: Histogram.from_json(found[name]) for name in HISTOGRAMS}
        return cls(**{**found, **histograms})
