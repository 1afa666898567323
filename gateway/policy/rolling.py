"""In which order the replicas of one model take a new version: one swap at a time, the first alone.

Pure: what replicas say comes in with `now`, orders and findings go out. A version that no replica
has proven yet is tried by one of them; the others follow when it has passed its probation there.
One that did worse is refused everywhere, and one that an operator rolled back from is left by who
comes up with it. Invariants: of those that wait, at most one is told to swap at a time; nothing but
a live replica's probation or trial holds up the others for longer than `PATIENCE_S`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

# A swap takes as long as the batch before it; one that takes longer no longer holds up the others.
PATIENCE_S = 10.0
# A replica that came up with a new version has no older one to compare it with: it lives, or not.
TRIAL_S = 5.0
# So many replicas may die on a version that nobody has proven; chance kills some.
DEATHS = 3
# Versions remembered as proven or bad; a channel goes back no further.
KEPT = 64

_LOADING = ("admit", "load", "verify", "ready")


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a replica says of itself, as in its STATUS."""

    version: str = ""
    reload: str = "idle"
    reload_to: str = ""
    channel: str = ""
    refused: tuple[str, ...] = ()
    reason: str = ""


class Order(NamedTuple):
    """`op` "swap": go on with the version that waits; "refuse": never serve it, for `reason`;
    "rollback": leave it."""

    replica: str
    op: str
    version: str
    reason: str = ""


class Finding(NamedTuple):
    """What has become clear, for the operators. `kind`: proven, refused, died."""

    kind: str
    replica: str
    version: str
    text: str


@dataclass(slots=True)
class _Replica:
    view: View
    since: float  # in this stage with this target
    trial: float | None = None  # since when it has served the version that it came up with
    told: str = ""  # the version that it may swap to
    told_at: float = 0.0
    refusing: dict[str, float] = field(default_factory=dict)


class Rolling:
    """`probation`: whether an unproven version is on probation at one replica at a time."""

    def __init__(self, *, probation: bool = True) -> None:
        self.probation = probation
        self._replicas: dict[str, _Replica] = {}
        self._proven: dict[str, None] = {}
        self._bad: dict[str, str] = {}
        self._recalled: dict[str, None] = {}  # those of the bad that an operator rolled back from
        self._deaths: dict[str, int] = {}
        self._skewed: dict[str, float] = {}  # channel: since when its replicas differ

    # ------------------------------------------------------------------------------ what comes

    def heard(self, name: str, view: View, now: float) -> list[Finding]:
        """A replica's newest word."""
        known = self._replicas.get(name)
        if known is None:
            known = self._replicas[name] = _Replica(view, now)
            before = View()
        else:
            before, known.view = known.view, view
            if (before.reload, before.reload_to) != (view.reload, view.reload_to):
                known.since = now
        findings = [*self._refusals(name, known, before)]
        if known.told and not (view.reload in ("ready", "swap") and view.reload_to == known.told):
            known.told = ""
        if view.version and not before.version:
            known.trial = now
        elif view.version != before.version:
            known.trial = None
        if view.version and known.trial is None and view.reload not in ("swap", "probation"):
            findings += self._prove(name, view.version)
        self._look_at_skew(now)
        return findings

    def gone(self, name: str, now: float) -> list[Finding]:
        """A replica is not there any more; what it tried has not been proven by it."""
        known = self._replicas.pop(name, None)
        self._look_at_skew(now)
        if known is None or not self._tries(known):
            return []
        version = known.view.version
        deaths = self._deaths[version] = self._deaths.pop(version, 0) + 1
        _forget(self._deaths)
        died = Finding("died", name, version, f"it went away while it tried {version}")
        if deaths < DEATHS:
            return [died]
        return [died, *self._condemn(name, version, f"{deaths} replicas died while they tried it")]

    def missed(self, name: str, *, refused: bool = False) -> None:
        """An order did not reach the replica, or came too late for it; `refused`: it has said that
        it cannot, so that it is not asked again at once."""
        if (known := self._replicas.get(name)) is not None:
            known.told = ""
            if not refused:
                known.refusing.clear()

    def recall(self, name: str, version: str, why: str) -> list[Finding]:
        """An operator has rolled back from it, and told who was there."""
        self._recalled[version] = None
        _forget(self._recalled)
        return self._condemn(name, version, why)

    def forgive(self) -> None:
        """An operator has the refused tried again."""
        self._bad.clear()
        self._recalled.clear()
        self._deaths.clear()

    # ----------------------------------------------------------------------------- what follows

    def decide(self, now: float) -> tuple[list[Order], list[Finding]]:
        """What to tell the replicas now. Ask after each word and about once a second."""
        findings: list[Finding] = []
        for name, known in self._replicas.items():
            if known.trial is not None and now - known.trial >= TRIAL_S:
                known.trial = None
                findings += self._prove(name, known.view.version)
        orders = [*self._refuse(now)]
        chosen = self._next(now)
        if chosen is not None:
            known = self._replicas[chosen]
            known.told, known.told_at = known.view.reload_to, now
            orders.append(Order(chosen, "swap", known.told))
        return orders, findings

    def _next(self, now: float) -> str | None:
        if any(self._swaps(known, now) for known in self._replicas.values()):
            return None
        waiting = [
            (known.since, name)
            for name, known in self._replicas.items()
            if known.view.reload == "ready"
            and known.view.reload_to not in self._bad
            # One that was told and did not move has had its turn; the others come first.
            and not known.told
        ]
        for _, name in sorted(waiting):
            view = self._replicas[name].view
            if view.reload_to in self._proven or not self.probation:
                return name
            if not any(
                self._tries(other) and _holds_up(other, view)
                for other_name, other in self._replicas.items()
                if other_name != name
            ):
                return name
        for known in self._replicas.values():
            known.told = ""  # all have had it
        return None

    def _swaps(self, known: _Replica, now: float) -> bool:
        if known.told:
            return now - known.told_at < PATIENCE_S
        return known.view.reload == "swap" and now - known.since < PATIENCE_S

    def _tries(self, known: _Replica) -> bool:
        """It serves a version that nobody has proven."""
        view = known.view
        on_trial = view.reload == "probation" or known.trial is not None
        return on_trial and view.version not in self._proven and view.version != ""

    def _refuse(self, now: float) -> Iterator[Order]:
        for name, known in self._replicas.items():
            for op, version in self._wrong(known.view):
                if now - known.refusing.get(version, float("-inf")) >= PATIENCE_S:
                    known.refusing[version] = now
                    _forget(known.refusing)
                    yield Order(name, op, version, self._bad[version])

    def _wrong(self, view: View) -> Iterator[tuple[str, str]]:
        """What is bad of what it does, and what it has to be told."""
        if not view.version:  # before it loads any of them, if it can still be told
            yield from (("refuse", version) for version in self._bad)
            return
        recalled = view.version in self._recalled and view.version in self._bad
        if recalled and view.version not in view.refused:
            yield "rollback", view.version
        if view.reload in _LOADING and view.reload_to in self._bad:
            yield "refuse", view.reload_to

    # -------------------------------------------------------------------------------- findings

    def _refusals(self, name: str, known: _Replica, before: View) -> Iterator[Finding]:
        """One that served a version, or was told to, and now refuses it, found it to do worse."""
        for version in known.view.refused:
            if version in before.refused or version in self._bad:
                continue
            # Not every state of a replica is heard of: it may have swapped and failed since.
            if version in (before.version, known.told, known.view.version):
                yield from self._condemn(name, version, f"{name} went back: {known.view.reason}")
            else:
                text = f"does not serve {version}: {known.view.reason}"
                yield Finding("refused", name, version, text)

    def _condemn(self, name: str, version: str, why: str) -> list[Finding]:
        self._proven.pop(version, None)
        self._bad[version] = why
        _forget(self._bad)
        return [Finding("refused", name, version, f"{version} is refused everywhere: {why}")]

    def _prove(self, name: str, version: str) -> list[Finding]:
        if version in self._proven or version in self._bad or not version:
            return []
        self._proven[version] = None
        _forget(self._proven)
        self._deaths.pop(version, None)
        return [Finding("proven", name, version, f"{version} is proven here; the others may swap")]

    # ------------------------------------------------------------------------------------ skew

    def _look_at_skew(self, now: float) -> None:
        mixed = {channel for channel, served in self._served().items() if len(served) > 1}
        self._skewed = {channel: self._skewed.get(channel, now) for channel in mixed}

    def _served(self) -> dict[str, dict[str, int]]:
        """channel: version: how many replicas serve it."""
        served: dict[str, dict[str, int]] = {}
        for known in self._replicas.values():
            if known.view.version:
                versions = served.setdefault(known.view.channel, {})
                versions[known.view.version] = versions.get(known.view.version, 0) + 1
        return served

    def versions(self) -> dict[str, int]:
        """How many replicas serve each version."""
        counts: dict[str, int] = {}
        for served in self._served().values():
            for version, count in served.items():
                counts[version] = counts.get(version, 0) + count
        return counts

    def skew_s(self, now: float) -> float:
        """For how long replicas that follow one channel have served different versions."""
        return max((now - since for since in self._skewed.values()), default=0.0)

    @property
    def waiting(self) -> list[str]:
        return sorted(n for n, known in self._replicas.items() if known.view.reload == "ready")

    @property
    def bad(self) -> dict[str, str]:
        """Versions that are refused everywhere, and why."""
        return dict(self._bad)

    def view(self, name: str) -> View | None:
        known = self._replicas.get(name)
        return None if known is None else known.view

    def views(self) -> dict[str, View]:
        return {name: known.view for name, known in self._replicas.items()}


def _holds_up(trying: _Replica, waiting: View) -> bool:
    """A probation is one at a time in a channel; a trial concerns its own version only."""
    if trying.view.reload == "probation":
        return trying.view.channel == waiting.channel
    return trying.view.version == waiting.reload_to


def _forget(remembered: dict[str, Any]) -> None:
    while len(remembered) > KEPT:
        remembered.pop(next(iter(remembered)))
