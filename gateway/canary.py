"""A model's canary while it serves: what is tried, how it does, and where its channel goes next.

Owns the trial under way and the moves of the channels, which a replica makes for it: the gateway
itself reads no checkpoint. What is decided is in `policy.canary`. Invariant: every decision is an
event with its numbers, and a version is decided once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from gateway.config import CanaryConfig
from gateway.control import ControlError
from gateway.events import Events
from gateway.metrics import Family
from gateway.policy.canary import Rules, Sample, Trial
from gateway.policy.rolling import View

# A move that failed is tried again after this.
RETRY_S = 10.0
SECONDS, FAILURES = "penstock_version_seconds", "penstock_version_failures_total"

Json = dict[str, Any]
# An operation on a replica, by name: its answer. Raises ControlError.
Ask = Callable[..., Awaitable[Json]]


class Canary:
    """Of one model with `[models.canary]`. `look` at it about once a second."""

    def __init__(self, model: str, config: CanaryConfig, ask: Ask, events: Events) -> None:
        assert config.channel is not None
        self.config, self.channel = config, config.channel
        self._model, self._ask, self._events = model, ask, events
        self._trial: Trial | None = None
        self._numbers: Json = {}
        self._last: Json | None = None
        self._decided = ""
        self._due: tuple[str, str, Json] | None = None  # what to do again, and why
        self._retry_at = 0.0

    @property
    def watching(self) -> bool:
        """Whether counts are needed to go on."""
        return self._trial is not None

    def report(self) -> Json:
        return {
            "channel": self.channel,
            "share": self.config.share,
            "by": self.config.by,
            "trying": self._trial.version if self._trial else "",
            "numbers": self._numbers if self._trial else {},
            "last": self._last,
        }

    async def look(self, views: Mapping[str, View], families: Sequence[Family], now: float) -> None:
        """What the replicas say and the workers have counted."""
        if self._due is not None:
            if now >= self._retry_at:
                await self._decide(*self._due, views, now)
            return
        if not any(view.version for view in self._canaries(views).values()):
            return  # they are away; what they did before they went still counts
        version, stable = self._candidate(views), self._stable(views)
        if self._trial is not None and self._trial.version != version:
            if refused := self._refused(views, self._trial.version):
                await self._judge(self._trial, views, families, now, refused)
            # Moved on by itself, or the others have it: there is nothing left to decide.
            self._trial = None
        if self._trial is None:
            if not version or version == self._decided:
                return
            mine, theirs = (
                _sample(families, self._model, [version]),
                _sample(families, self._model, stable),
            )
            self._trial = Trial(_rules(self.config), version, now, mine, theirs)
            text = f"{version} is tried beside {', '.join(stable)}"
            self._events.add("canary", self._model, text)
        await self._judge(self._trial, views, families, now, self._refused(views, version))

    async def _judge(
        self,
        trial: Trial,
        views: Mapping[str, View],
        families: Sequence[Family],
        now: float,
        refused: str,
    ) -> None:
        mine = _sample(families, self._model, [trial.version])
        theirs = _sample(families, self._model, self._stable(views))
        self._numbers = trial.numbers(now, mine, theirs)
        if self.config.decide == "manual":
            return
        checked = all(v.reload == "idle" for v in self._canaries(views).values())
        verdict = trial.judge(now, mine, theirs, refused=refused, settled=checked)
        if verdict is not None:
            await self._decide(verdict.kind, verdict.why, verdict.numbers, views, now)

    # -------------------------------------------------------------------------------- by hand

    async def promote(self, views: Mapping[str, View]) -> Json:
        """Raises ControlError where nothing is tried."""
        version = self._tried(views)
        return await self._move("promote", version, "by an operator", self._numbers, views)

    async def rollback(self, views: Mapping[str, View]) -> Json:
        version = self._tried(views)
        return await self._move("rollback", version, "by an operator", self._numbers, views)

    def tried(self, views: Mapping[str, View]) -> str:
        """The version that is tried now, or nothing."""
        return self._candidate(views)

    def _tried(self, views: Mapping[str, View]) -> str:
        if version := self._candidate(views):
            return version
        raise ControlError(
            f"model {self._model!r} tries nothing now: the replicas that follow channel "
            f'"{self.channel}" serve what the others do, or nothing',
            status=409,
            code="nothing_tried",
        )

    # ------------------------------------------------------------------------------ what it does

    async def _decide(
        self, kind: str, why: str, numbers: Json, views: Mapping[str, View], now: float
    ) -> None:
        self._due = None
        try:
            await self._move(kind, numbers["version"], why, numbers, views)
        except ControlError as error:
            text = f"could not {kind} {numbers['version']} ({why}): {error}"
            self._events.add("canary", self._model, text)
            if error.code == "conflict":  # the channel has moved meanwhile: another trial begins
                self._decided, self._trial = numbers["version"], None
                return
            self._due, self._retry_at = (kind, why, numbers), now + RETRY_S

    async def _move(
        self, kind: str, version: str, why: str, numbers: Json, views: Mapping[str, View]
    ) -> Json:
        """Raises ControlError; then nothing was moved."""
        stable = {view.channel for view in self._others(views).values() if view.channel}
        if len(stable) != 1:
            raise ControlError(
                f"the other replicas follow {', '.join(sorted(stable)) or 'no channel'}: a "
                "version can be promoted to, or replaced by that of, exactly one",
                status=409,
                code="no_stable_channel",
            )
        (other,) = stable
        promote = kind == "promote"
        arguments = {
            "channel": other if promote else self.channel,
            "like": self.channel if promote else other,
            "version": version if promote else "",
            "before": "" if promote else version,
        }
        moved = await self._ask(next(iter(self._canaries(views))), "point", **arguments)
        self._decided, self._trial, self._due = version, None, None
        self._last = {"decision": kind, "version": version, "why": why, "numbers": numbers}
        done = "promoted" if promote else "rolled back"
        self._events.add("canary", self._model, f"{version} is {done}: {why}; {_said(numbers)}")
        return {"model": self._model, "decision": kind, "version": version, "moved": moved}

    # --------------------------------------------------------------------------------- the sides

    def _canaries(self, views: Mapping[str, View]) -> dict[str, View]:
        return {name: view for name, view in views.items() if view.channel == self.channel}

    def _others(self, views: Mapping[str, View]) -> dict[str, View]:
        return {name: view for name, view in views.items() if view.channel != self.channel}

    def _stable(self, views: Mapping[str, View]) -> list[str]:
        return sorted({view.version for view in self._others(views).values() if view.version})

    def _candidate(self, views: Mapping[str, View]) -> str:
        """The version that is tried: all that follow the channel serve it, and not all others."""
        tried = {view.version for view in self._canaries(views).values() if view.version}
        stable = self._stable(views)
        if len(tried) != 1 or not stable or stable == [*tried]:
            return ""
        return next(iter(tried))

    def _refused(self, views: Mapping[str, View], version: str) -> str:
        for name, view in self._canaries(views).items():
            if version in view.refused:
                return f"{name} refused it: {view.reason}"
        return ""


def _rules(config: CanaryConfig) -> Rules:
    return Rules(
        after_s=config.after_s,
        requests=config.requests,
        errors=config.errors,
        quantile=config.quantile,
        slower=config.slower,
    )


def _sample(families: Sequence[Family], model: str, versions: Sequence[str]) -> Sample:
    """The sum over versions, of all workers."""
    buckets: dict[float, int] = {}
    requests = failed = 0
    for name, _, _, _, *samples in families:
        for labels, value in samples:
            if name not in (SECONDS, FAILURES) or labels[0] != model or labels[1] not in versions:
                continue
            if name == FAILURES:
                failed += value
                continue
            requests += value["count"]
            for bound, count in value["buckets"]:
                buckets[float(bound)] = buckets.get(float(bound), 0) + count
    return Sample(requests, failed, tuple(sorted(buckets.items())))


def _said(numbers: Json) -> str:
    if not numbers:
        return "nothing was counted yet"
    sides = []
    for side in ("canary", "stable"):
        found = numbers[side]
        sides.append(
            f"{side}: {found['requests']} requests, {found['failed']} failed, "
            f"{numbers['quantile']:.1%} within {found['latency_ms']} ms"
        )
    return f"{'; '.join(sides)}; in {numbers['seconds']:g} s"
