"""A run's commits as it hears of them: the last good version, what failed, what to say.

Owns what `Committer` tells about commits that ended. Invariant: where the configuration says that a
failed commit stops the run, nothing is committed after one.
"""

from __future__ import annotations

from trainer.committer import Committer, Moment, Outcome
from trainer.errors import CommitFailed
from trainer.metrics import Reporter


class Commits:
    """`version` is the last one that was committed; `failed` says that the run is to stop."""

    def __init__(
        self, committer: Committer, reporter: Reporter, version: str | None, on_failure: str
    ) -> None:
        self._committer, self._reporter = committer, reporter
        self._on_failure = on_failure
        self.version = version
        self._last: Outcome | None = None
        self._failed: Outcome | None = None

    @property
    def failed(self) -> bool:
        return self._failed is not None

    @property
    def good_version(self) -> str:
        return f"The last good version is {self.version}" if self.version else "None is committed"

    def begin(self, moment: Moment) -> None:
        """Raises CommitFailed. Collective."""
        self.settle()  # after a commit that failed there may be none, if it is to stop
        self._committer.begin(moment)
        self.hear()

    def settle(self) -> None:
        """Waits for the commit under way. Raises CommitFailed on every rank if one failed and the
        run is to stop for it."""
        self._committer.join()
        self.hear()
        if self._failed is not None:
            raise self._commit_failed(self._failed)

    def finish(self) -> None:
        """Raises CommitFailed unless the last commit is good."""
        self.settle()
        if self._last is not None and not self._last.good:
            raise self._commit_failed(self._last)

    def _commit_failed(self, outcome: Outcome) -> CommitFailed:
        return CommitFailed(
            f"step {outcome.step} was not committed: {outcome.reason}. {self.good_version}; the "
            "same command goes on from there"
        )

    def hear(self) -> None:
        """Takes note of the commits that ended."""
        for outcome in self._committer.outcomes():
            self._last = outcome
            if outcome.good:
                self.version = outcome.version
                self._say_good(outcome)
            else:
                step, reason = outcome.step, outcome.reason
                text = f"step {step}  NOT committed: {reason}"
                self._reporter.event("commit_failed", text, step=step, reason=reason)
                if self._on_failure == "stop":
                    self._failed = outcome

    def _say_good(self, outcome: Outcome) -> None:
        report, step = self._reporter.event, outcome.step
        report(
            "commit",
            f"step {step}  committed {outcome.version}",
            step=step,
            version=outcome.version,
            stalled_s=round(outcome.stalled_s, 6),
            seconds=round(outcome.seconds, 6),
            pruned=outcome.pruned,
        )
        if outcome.published is not None:
            for name, fields in outcome.published.events:
                report(name, **fields)
            report("channel", f"step {step}  channel: {outcome.published.text}", step=step)
        if outcome.unpruned:
            text = f"! old checkpoints stay for now: {outcome.unpruned}"
            report("prune_failed", text, step=step, reason=outcome.unpruned)
