"""What the statistics extension counts of one model, by version.

Plain integers that the dispatcher adds to: per request and per batch, a few additions. Invariants:
`inferences` counts the rows of successful requests, `executions` the batches that a replica
answered; no request counts twice. Old versions are forgotten, oldest first, so that any number of
reloads takes no more memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from gateway.request import Answer

# A client compares two readings of the version in service; a few of its predecessors suffice.
MAX_VERSIONS = 16


@dataclass(slots=True)
class VersionStats:
    """Durations are sums over requests (`batches`: over batches), in nanoseconds."""

    inferences: int = 0
    executions: int = 0
    last_ms: int = 0  # Unix time of the last execution
    successes: int = 0
    success_ns: int = 0  # from arrival to the terminal event
    failures: int = 0
    failure_ns: int = 0
    queue_ns: int = 0  # of the successful requests, as the two below
    compute_ns: int = 0
    # Rows of a batch: [batches of that size, their compute time].
    batches: dict[int, list[int]] = field(default_factory=dict)

    def add(self, other: VersionStats) -> None:
        """Another worker's counts of the same version."""
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.last_ms = max(self.last_ms, other.last_ms)
        for rows, (count, ns) in other.batches.items():
            mine = self.batches.setdefault(rows, [0, 0])
            mine[0] += count
            mine[1] += ns


_SUMS = tuple(f.name for f in fields(VersionStats) if f.name not in ("last_ms", "batches"))


@dataclass(slots=True)
class ModelStats:
    versions: dict[str, VersionStats] = field(default_factory=dict)

    def executed(self, version: str, rows: int, compute_us: int, now_s: float) -> None:
        """A replica answered one of our batches of `rows` rows. `now_s`: Unix time."""
        stats = self.versions.get(version) or self._begin(version)
        stats.executions += 1
        stats.last_ms = int(now_s * 1e3)
        batch = stats.batches.get(rows)
        if batch is None:
            batch = stats.batches[rows] = [0, 0]
        batch[0] += 1
        batch[1] += compute_us * 1000

    def succeeded(self, answer: Answer, rows: int, seconds: float) -> None:
        """A request of `rows` rows ended with this answer, `seconds` after it arrived."""
        stats = self.versions.get(answer.version) or self._begin(answer.version)
        stats.inferences += rows
        stats.successes += 1
        stats.success_ns += int(seconds * 1e9)
        stats.queue_ns += answer.queue_us * 1000
        stats.compute_ns += answer.compute_us * 1000

    def called(self, version: str, queue_s: float, compute_s: float, now_s: float) -> None:
        """A call ended well. It was executed by itself, as far as anybody can tell. `now_s`: Unix
        time."""
        stats = self.versions.get(version) or self._begin(version)
        stats.inferences += 1
        stats.executions += 1
        stats.successes += 1
        stats.last_ms = int(now_s * 1e3)
        stats.success_ns += int((queue_s + compute_s) * 1e9)
        stats.queue_ns += int(queue_s * 1e9)
        stats.compute_ns += int(compute_s * 1e9)

    def failed(self, version: str, seconds: float) -> None:
        """A request ended with an error: the version it asked for, or the one in service."""
        stats = self.versions.get(version) or self._begin(version)
        stats.failures += 1
        stats.failure_ns += int(seconds * 1e9)

    def _begin(self, version: str) -> VersionStats:
        while len(self.versions) >= MAX_VERSIONS:
            del self.versions[next(iter(self.versions))]
        stats = self.versions[version] = VersionStats()
        return stats

    def add(self, other: ModelStats) -> None:
        """Another worker's counts of the same model."""
        for version, stats in other.versions.items():
            (self.versions.get(version) or self._begin(version)).add(stats)

    def to_json(self) -> dict[str, Any]:
        """For another process; JSON has no integer keys, so batches become triples."""
        return {
            version: {name: getattr(stats, name) for name in (*_SUMS, "last_ms")}
            | {"batches": [[rows, *batch] for rows, batch in stats.batches.items()]}
            for version, stats in self.versions.items()
        }

    @classmethod
    def from_json(cls, versions: dict[str, Any]) -> ModelStats:
        return cls(
            {
                version: VersionStats(
                    **{
                        **values,
                        "batches": {rows: [count, ns] for rows, count, ns in values["batches"]},
                    }
                )
                for version, values in versions.items()
            }
        )
