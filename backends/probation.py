"""Whether a new version does worse than the one before it: its faults and its service times.

Pure: batches come in, a verdict goes out; what is known of each live version is kept here. Times
are compared only between batches of about equal size (powers of two), so that a change of traffic
is no regression; outliers are outvoted.
"""

from __future__ import annotations

from typing import Protocol

# Verdicts need some evidence: with fewer batches or requests, chance decides.
MIN_BATCHES, MIN_REQUESTS = 20, 20
# Below this, a factor says nothing: the clock, the cache and the neighbours do.
FLOOR_S = 0.002
# A model may fail on so many requests more than before: the clients change too.
MARGIN = 0.05


class Ran(Protocol):
    """What a version did: so many rows together in so many seconds, for so many requests, of which
    so many failed. `regressed`: why it must go at once, or nothing."""

    @property
    def version(self) -> str: ...
    @property
    def rows(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def requests(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def regressed(self) -> str: ...


class Measures:
    """What is known of one version."""

    # Weight of a new batch in the mean, and of old requests in the share that failed.
    ALPHA, KEEP = 0.1, 0.999

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._requests = self._failed = 0.0

    def observe(self, rows: int, seconds: float, requests: int, failed: int) -> None:
        bucket = rows.bit_length()
        mean = self._seconds.get(bucket)
        self._seconds[bucket] = seconds if mean is None else mean + self.ALPHA * (seconds - mean)
        self._requests = self._requests * self.KEEP + requests
        self._failed = self._failed * self.KEEP + failed

    def seconds(self, rows: int) -> float | None:
        """The mean time of batches of about so many rows, None if there were none."""
        return self._seconds.get(rows.bit_length())

    @property
    def failing(self) -> float:
        """The share of requests on which the model failed."""
        return self._failed / self._requests if self._requests else 0.0


class Probation:
    """Judges a version by the measures of the one before; slower by `slowdown` is too slow."""

    def __init__(self, before: Measures, slowdown: float) -> None:
        self._before, self._slowdown = before, slowdown
        self._batches = self._slow = self._requests = self._failed = 0

    def observe(self, rows: int, seconds: float, requests: int, failed: int) -> str:
        """Why to go back, or nothing."""
        self._requests += requests
        self._failed += failed
        expected = self._before.seconds(rows)
        if expected is not None:
            self._batches += 1
            self._slow += seconds > expected * self._slowdown + FLOOR_S
        if self._requests >= MIN_REQUESTS:
            share = self._failed / self._requests
            if share > self._before.failing + MARGIN:
                return f"{share:.0%} of its requests failed, {self._before.failing:.0%} before"
        if self._batches >= MIN_BATCHES and self._slow * 2 > self._batches:
            return (
                f"{self._slow} of its {self._batches} batches took more than "
                f"{self._slowdown:g} times as long as before"
            )
        return ""


class Judge:
    """What is known of each live version, and the probation of the one that serves; slower by
    `slowdown` is too slow. A version that it does not know is not judged."""

    def __init__(self, slowdown: float) -> None:
        self._slowdown = slowdown
        self._measures: dict[str, Measures] = {}
        self._probation: Probation | None = None

    def know(self, version: str) -> None:
        self._measures.setdefault(version, Measures())

    def forget(self, version: str) -> None:
        self._measures.pop(version, None)

    def compare(self, before: str | None) -> None:
        """What serves is on probation after that known version; or no longer. Said again and again,
        it changes nothing."""
        if before is None:
            self._probation = None
        elif self._probation is None:
            self._probation = Probation(self._measures[before], self._slowdown)

    def observe(self, ran: Ran, serving: str) -> str:
        """Why to go back from what serves, or nothing."""
        measures = self._measures.get(ran.version)
        if measures is None:
            return ""
        seen = ran.rows, ran.seconds, ran.requests, ran.failed
        why = ""
        if self._probation is not None and ran.version == serving:
            why = ran.regressed or self._probation.observe(*seen)
        measures.observe(*seen)
        return why
