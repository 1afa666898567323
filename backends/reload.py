"""Hot reload as decisions: what to load, when to swap, when to keep what is new, when to go back.

ADMIT → LOAD → VERIFY → READY → SWAP → PROBATION → COMMIT | ROLLBACK. Pure: events and `now` come
in, actions go out; the shell does them and reports. Invariants: one load at a time, and the latest
wanted wins; what serves is never given up before another took its place; a refused hash is never
tried again; READY lasts only while a gateway that steers is heard.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from backends.reload_terms import (
    LOADING,
    Action,
    Begin,
    Cancel,
    Commit,
    Failure,
    Note,
    Quarantine,
    Release,
    Stage,
    Swap,
    Target,
)

# A full disk or a slow mount: try again soon, then less often.
RETRY_S, MAX_RETRY_S = 0.5, 30.0
# Versions remembered as proven, or as refused, beyond those that the channel names or that are
# live: one that the channel comes back to after so many others has to prove itself again.
REMEMBERED = 64


class Reload:
    """`keep` versions stay live after probation, the one in service included. `ask_s`: a version
    that could take the place of a good one waits for `allow` while the last `steer` is not older;
    None: it never waits."""

    def __init__(self, *, probation_s: float, keep: int = 1, ask_s: float | None = None) -> None:
        self._probation_s, self._keep, self._ask_s = probation_s, keep, ask_s
        self._steered_until = float("-inf")
        self.stage = Stage.IDLE
        self.serving: Target | None = None
        # What it loads, swaps to or has on probation.
        self.target: Target | None = None
        # The version that probation may go back to.
        self.fallback: Target | None = None
        # Live versions, the one in service last.
        self.held: list[Target] = []
        self.problem = ""
        # A version that there is room for only in a new process.
        self.crowded = ""
        self._wanted: tuple[Target, ...] = ()
        self._refused: dict[str, str] = {}
        # Names of what is not to be served, from before the channel was seen at it.
        self._barred: dict[str, str] = {}
        # Versions that passed probation here, or had none to pass: going back needs no proof.
        self._proven: dict[str, None] = {}
        self._cancelling = False
        # Whether the target was loaded for this swap, or had been kept.
        self._fresh = False
        self._until = 0.0
        self._failures, self._retry_at = 0, 0.0

    @property
    def stuck(self) -> bool:
        """Nothing is served, and nothing that is wanted can be."""
        return self.serving is None and bool(self._wanted) and self._goal() is None

    @property
    def refused(self) -> list[Target]:
        """What the channel points at or pointed at before, and is not served here."""
        return [target for target in self._wanted if target.hash in self._refused]

    @property
    def goal(self) -> Target | None:
        """What the channel, as it was last seen, has this replica serve."""
        return self._goal() or self.serving

    @property
    def generation(self) -> int:
        """The channel's newest generation that points at what is served; 0 while nothing is."""
        if self.serving is None:
            return 0
        same = (target for target in self._wanted if target.hash == self.serving.hash)
        return next(same, self.serving).generation

    # --------------------------------------------------------------------------------- what comes

    def want(self, targets: Sequence[Target], now: float) -> list[Action]:
        """The channel points at targets[0]; the others are where it was before, nearest first."""
        if targets[:1] != list(self._wanted[:1]):
            self._failures, self._retry_at, self.crowded = 0, 0.0, ""
        self._wanted = tuple(targets)
        self._forget(self._refused)
        self._forget(self._proven)
        return self._recognise() + self._pursue(now)

    def retry(self, now: float) -> list[Action]:
        """An operator asks: forget what was refused here."""
        self._refused.clear()
        self._barred.clear()
        self._failures, self._retry_at = 0, 0.0
        return self._pursue(now)

    def steer(self, now: float) -> list[Action]:
        """A gateway decides the order of swaps, and is there."""
        if self._ask_s is not None:
            self._steered_until = now + self._ask_s
        return []

    def allow(self, version: str) -> list[Action]:
        """It is this replica's turn. Raises ValueError when that version does not wait (any more):
        the caller has seen an older state."""
        if self.stage is not Stage.READY or self.target is None or self.target.version != version:
            raise ValueError(f"version {version} does not wait for its swap here: {self.stage}")
        return self._swap_to(self.target)

    def refuse(self, version: str, reason: str, now: float) -> list[Action]:
        """Never serve it here: it did worse elsewhere. What is in service already stays, unless it
        is on probation."""
        bad = self._known(version)
        if bad is None:
            self._bar(version, reason)
        if bad is None or bad.hash in self._refused:
            return []
        if self.serving is not None and self.serving.hash == bad.hash:
            return self.regressed(reason, now)
        self._refused[bad.hash], self.problem = reason, f"{bad.version}: {reason}"
        return [Note("reload.refused", bad, reason), *self._pursue(now)]

    def staged(self, target: Target, stage: Stage) -> list[Action]:
        if target != self.target or self.stage not in LOADING:
            return []
        self.stage = stage
        return [Note(f"reload.{stage}", target)]

    def loaded(self, target: Target, now: float) -> list[Action]:
        assert target == self.target and self.stage in LOADING, (target, self.stage)
        self._failures, self._cancelling = 0, False
        goal = self._goal()
        if goal is None or goal.hash != target.hash:
            self.stage, self.target = Stage.IDLE, None
            gone: list[Action] = [Note("reload.superseded", target), Release(target)]
            return gone + self._pursue(now)
        self.held.insert(max(len(self.held) - 1, 0), target)
        self._fresh = True
        return self._arrive(target, now)

    def failed(self, target: Target, failure: Failure, reason: str, now: float) -> list[Action]:
        assert target == self.target and self.stage in LOADING, (target, self.stage)
        self.stage, self.target, self._cancelling = Stage.IDLE, None, False
        actions: list[Action] = [Note(f"reload.{failure}", target, reason)]
        self.crowded = target.version if failure is Failure.CROWDED else ""
        if failure in (Failure.TRANSIENT, Failure.CROWDED):
            self._retry_at = now + min(RETRY_S * 2**self._failures, MAX_RETRY_S)
            self._failures += 1
        if failure is not Failure.CANCELLED:
            self.problem = f"{target.version}: {reason}"
        if failure in (Failure.REFUSED, Failure.CORRUPT):
            self._refused[target.hash] = reason
        if failure is Failure.CORRUPT:
            actions.append(Quarantine(target, reason))
        return actions + self._pursue(now)

    def swapped(self, target: Target, now: float) -> list[Action]:
        """The device serves it now."""
        assert target == self.target and self.stage is Stage.SWAP, (target, self.stage)
        self.serving = target
        if any(newest.hash == target.hash for newest in self._wanted[:1]):
            self.problem = ""  # else it is why we are not where we should be
        self.held.remove(target)
        self.held.append(target)
        actions: list[Action] = [Note("reload.swapped", target)]
        if self.fallback is None:
            return actions + self._settle(now)
        if (why := self._refused.get(target.hash)) is not None:  # since it was told to swap
            return [*actions, Note("reload.rollback", target, why), *self._swap_to(self.fallback)]
        self.stage = Stage.PROBATION
        self._until = now + self._probation_s
        return [*actions, Note("reload.probation", target)]

    def regressed(self, reason: str, now: float) -> list[Action]:
        """The version on probation does worse than the one before it."""
        if self.stage is not Stage.PROBATION or self.serving is None or self.fallback is None:
            return []
        bad, back = self.serving, self.fallback
        self._refused[bad.hash], self.problem = reason, f"{bad.version}: {reason}"
        return [Note("reload.rollback", bad, reason), *self._swap_to(back)]

    def give_up(self, version: str, reason: str, now: float) -> list[Action]:
        """An operator rolls back from that version: what serves it goes to where the channel was
        before, and who has not seen the channel at it yet never takes it. Said twice, it changes
        nothing. Raises ValueError when there is nothing to go back to.
        """
        bad = self._known(version)
        if bad is None:
            self._bar(version, reason)
        if bad is None or bad.hash in self._refused:
            return []
        serves = self.serving is not None and self.serving.hash == bad.hash
        if serves and self.stage is Stage.PROBATION:
            return self.regressed(reason, now)
        self._refused[bad.hash] = reason
        if self._goal() is None and not self._settled:
            del self._refused[bad.hash]
            raise ValueError(f"the channel was nowhere else before {version}")
        self.problem = f"{version}: {reason}"
        event = "reload.rollback" if serves else "reload.refused"
        return [Note(event, bad, reason), *self._pursue(now)]

    def tick(self, now: float) -> list[Action]:
        if self.stage is Stage.PROBATION and now >= self._until:
            return self._settle(now)
        return self._pursue(now)

    # ------------------------------------------------------------------------------ what follows

    @property
    def _settled(self) -> bool:
        """Something good is served."""
        return self.serving is not None and self.serving.hash not in self._refused

    def _goal(self) -> Target | None:
        """What should be served: the newest that is not refused, so that whoever sees the same
        channel and refuses the same serves the same. What is good gives way only to a newer one;
        where the channel never was at it, that is the newest."""
        serving = self.serving if self._settled else None
        strange = serving and all(target.hash != serving.hash for target in self._wanted)
        for target in self._wanted[:1] if strange else self._wanted:
            if target.hash not in self._refused:
                return target
        return None

    def _known(self, version: str) -> Target | None:
        known = (*self._wanted, *self.held)
        return next((target for target in known if target.version == version), None)

    def _bar(self, version: str, reason: str) -> None:
        self._barred[version] = reason
        self._barred = dict([*self._barred.items()][-REMEMBERED:])

    def _recognise(self) -> list[Action]:
        """Refuse what was barred before it was seen, unless it is all there is."""
        notes: list[Action] = []
        for target in self._wanted:
            reason = self._barred.get(target.version)
            if reason is None or target.hash in self._refused:
                continue
            self._refused[target.hash] = reason
            if self._goal() is None and not self._settled:
                del self._refused[target.hash]
            else:
                notes.append(Note("reload.refused", target, reason))
        return notes

    def _pursue(self, now: float) -> list[Action]:
        goal = self._goal()
        there = goal is None or (self.serving is not None and goal.hash == self.serving.hash)
        if self.stage in LOADING and self.target is not None:
            moved = there or (goal is not None and goal.hash != self.target.hash)
            if moved and not self._cancelling:
                self._cancelling = True
                return [Cancel(self.target)]
            return []
        if self.stage is Stage.READY and self.target is not None:
            if there or goal is None or goal.hash != self.target.hash:
                return self._withdraw(self.target) + self._pursue(now)
            if self._asks(now):
                return []
            alone = [Note("reload.alone", self.target, "no gateway")] if self._settled else []
            return [*alone, *self._swap_to(self.target)]
        if there or goal is None:
            return []
        if self.stage is Stage.PROBATION:
            # The channel went back to where we came from: so do we, at once.
            if self.fallback is not None and goal.hash == self.fallback.hash:
                return [Note("reload.rollback", goal, "the channel"), *self._swap_to(self.fallback)]
            return []
        if self.stage is not Stage.IDLE or now < self._retry_at:
            return []
        for live in self.held:
            if live.hash == goal.hash:
                self._fresh = False
                return self._arrive(live, now)
        self.stage, self.target = Stage.ADMIT, goal
        return [Note("reload.admit", goal), Begin(goal)]

    def _forget(self, known: dict[str, Any]) -> None:
        needed = {target.hash for target in (*self._wanted, *self.held)}
        others = [hash for hash in known if hash not in needed]
        for hash in others[:-REMEMBERED]:
            del known[hash]

    def _arrive(self, target: Target, now: float) -> list[Action]:
        """It could be served: at once, or when the gateway says so."""
        if not self._asks(now):
            return self._swap_to(target)
        self.stage, self.target = Stage.READY, target
        return [Note("reload.ready", target)]

    def _asks(self, now: float) -> bool:
        """Only what can wait asks: where nothing good is served, any delay costs requests."""
        return self._settled and now < self._steered_until

    def _withdraw(self, target: Target) -> list[Action]:
        """It waits for its swap no more: another is wanted."""
        self.stage, self.target = Stage.IDLE, None
        actions: list[Action] = [Note("reload.superseded", target)]
        if self._fresh:
            self.held.remove(target)
            actions.append(Release(target))
        return actions

    def _swap_to(self, target: Target) -> list[Action]:
        noted = self.stage is Stage.READY
        self.stage, self.target, self.fallback = Stage.SWAP, target, self.serving
        bad = self.serving is not None and self.serving.hash in self._refused
        if bad or target.hash in self._proven or not self._probation_s:
            self.fallback = None
        swap = Swap(target, self.fallback)
        return [swap] if noted else [Note("reload.ready", target), swap]

    def _settle(self, now: float) -> list[Action]:
        """Commit to what is served; let go of what is not kept."""
        assert self.serving is not None
        self.stage, self.target, self.fallback = Stage.IDLE, None, None
        if self._settled:
            self._proven[self.serving.hash] = None
        actions: list[Action] = [Note("reload.commit", self.serving), Commit(self.serving)]
        bad = [live for live in self.held if live.hash in self._refused and live != self.serving]
        good = [live for live in self.held if live not in bad]
        self.held = good[max(len(good) - self._keep, 0) :]
        actions += [Release(live) for live in bad + good if live not in self.held]
        return actions + self._pursue(now)
