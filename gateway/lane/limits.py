"""What one client may take of the gateway, and what the lane counts.

Plain data. Every table and buffer that a client can fill has its bound here.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

KIB, MIB, GIB = 1024, 1024**2, 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Sizes in bytes, times in seconds. Times are kept by a coarse sweep: they may pass by up to
    a quarter of the shortest one before something is done about it."""

    max_line: int = 8 * KIB  # the request line
    max_head: int = 32 * KIB  # request line and fields together
    max_headers: int = 100
    max_body: int = 64 * MIB  # after decompression
    max_bodies: int = 1 * GIB  # all bodies together that wait for their ends; 503 beyond
    pipeline: int = 16  # requests of one connection in flight at once, at least 2
    head_timeout_s: float = 10.0  # from a head's first byte to its last
    body_timeout_s: float = 30.0  # per `min_body_rate` x body_timeout_s bytes of a body
    min_body_rate: float = 240.0  # bytes/s; below it a body counts as stalled
    idle_timeout_s: float = 75.0  # between requests; longer than common balancers' 60 s
    write_timeout_s: float = 60.0  # a client that takes none of its answer
    linger_s: float = 3.0  # after a refusal: how long the rest of the request is read and dropped
    linger_bytes: int = 64 * MIB

    def __post_init__(self) -> None:
        for known in fields(self):
            # With one in flight and reading paused, nobody would notice that the client has left.
            least = 2 if known.name == "pipeline" else 0
            if getattr(self, known.name) < least:
                raise ValueError(f"{known.name} must be at least {least}")


@dataclass(slots=True)
class LaneStats:
    """Plain counters since the start, and two gauges (`open`, `handed`)."""

    accepted: int = 0  # connections
    open: int = 0  # connections now, those handed over included
    handed: int = 0  # of these, now with the application
    requests: int = 0  # passed to a handler of this lane
    handed_over: int = 0  # requests passed to the application
    refused: int = 0  # answered by the lane itself: 400, 408, 413 ...
    timeouts: int = 0  # connections ended by a time limit
    gone: int = 0  # requests whose client left before the answer was out
