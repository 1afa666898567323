"""Whether a version on trial takes the place of the others: by its failures, its times, its checks.

Pure: cumulative counts of both sides come in with `now`, a verdict goes out, with the numbers that
it was made from. Invariants: no promotion before its time and its number of answers, nor of a
version that a replica refused; a trial has one verdict, and more failures never make it better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

# Fewer answers than these say nothing, and so few failures may be the clients'.
EARLY_REQUESTS, EARLY_FAILURES = 20, 5
# Differences below this are the machine's, not the version's.
FLOOR_S = 0.005

Buckets = tuple[tuple[float, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """As the keys of `[models.canary]` say."""

    after_s: float
    requests: int
    errors: float
    quantile: float
    slower: float


@dataclass(frozen=True, slots=True)
class Sample:
    """What one side has done so far. `latency`: (bound in seconds, how many took no longer)."""

    requests: int = 0
    failed: int = 0
    latency: Buckets = ()

    @property
    def failing(self) -> float:
        return self.failed / self.requests if self.requests else 0.0

    def since(self, base: Sample) -> Sample:
        """What was added to `base`; counts that have shrunk were begun anew."""
        if self.requests < base.requests or self.failed < base.failed:
            return self
        before = dict(base.latency)
        return Sample(
            self.requests - base.requests,
            self.failed - base.failed,
            tuple((bound, count - before.get(bound, 0)) for bound, count in self.latency),
        )

    def quantile(self, share: float) -> float | None:
        """Interpolated within its bucket; None without any, the last bound beyond all."""
        total = self.latency[-1][1] if self.latency else 0
        if not total:
            return None
        wanted, lower, below = share * total, 0.0, 0
        for bound, count in self.latency:
            if count >= wanted and count > below:
                if bound == float("inf"):
                    return lower
                return lower + (bound - lower) * (wanted - below) / (count - below)
            lower, below = bound, count
        return lower


class Verdict(NamedTuple):
    kind: Literal["promote", "rollback"]
    why: str
    numbers: dict[str, Any]


class Trial:
    """Of `version`, from `now` on; the samples are where the counts stood then."""

    def __init__(
        self, rules: Rules, version: str, now: float, canary: Sample, stable: Sample
    ) -> None:
        self.rules, self.version, self.began = rules, version, now
        self._canary, self._stable = canary, stable
        self.verdict: Verdict | None = None

    def numbers(self, now: float, canary: Sample, stable: Sample) -> dict[str, Any]:
        """Both sides since the trial began, for people and events."""
        share = self.rules.quantile

        def side(sample: Sample) -> dict[str, Any]:
            latency = sample.quantile(share)
            return {
                "requests": sample.requests,
                "failed": sample.failed,
                "latency_ms": None if latency is None else round(latency * 1e3, 3),
            }

        return {
            "version": self.version,
            "seconds": round(now - self.began, 3),
            "quantile": share,
            "canary": side(canary.since(self._canary)),
            "stable": side(stable.since(self._stable)),
        }

    def judge(
        self, now: float, canary: Sample, stable: Sample, *, refused: str = "", settled: bool = True
    ) -> Verdict | None:
        """`refused`: why a replica does not serve it; `settled`: its replicas are through with
        their own check. The verdict, once; None before and after."""
        if self.verdict is not None:
            return None
        found = self._judge(now, canary.since(self._canary), stable.since(self._stable), refused)
        if found is None or (found[0] == "promote" and not settled):
            return None
        self.verdict = Verdict(*found, self.numbers(now, canary, stable))
        return self.verdict

    def _judge(
        self, now: float, canary: Sample, stable: Sample, refused: str
    ) -> tuple[Literal["promote", "rollback"], str] | None:
        rules = self.rules
        if refused:
            return "rollback", refused
        due = now - self.began >= rules.after_s and canary.requests >= rules.requests
        early = canary.requests >= EARLY_REQUESTS and canary.failed >= EARLY_FAILURES
        if (due or early) and canary.failing > stable.failing + rules.errors:
            return "rollback", (
                f"{canary.failing:.2%} of its requests failed, {stable.failing:.2%} of the others'"
            )
        if not due:
            return None
        mine, theirs = canary.quantile(rules.quantile), stable.quantile(rules.quantile)
        if mine is None or theirs is None or stable.requests < EARLY_REQUESTS:
            return "promote", "no more failures than the others; too few of theirs to compare times"
        said = (
            f"{rules.quantile:.1%} of its requests within {mine * 1e3:.2f} ms, "
            f"{theirs * 1e3:.2f} ms of the others'"
        )
        if mine > theirs * rules.slower + FLOOR_S:
            return "rollback", said
        return "promote", f"no more failures than the others; {said}"
