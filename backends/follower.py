"""Follows a channel: watches it, loads what it points at, swaps, and goes back where it must.

Owns the threads that load and clean up, and does what `Reload` decides; it decides nothing itself.
Everything but those threads runs on the event loop. Invariant: the device thread sees of a reload
only the swap.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar

from backends.checkpoint import ChannelRecord, CheckpointError, Run, quarantine
from backends.errors import Conflict
from backends.events import Events
from backends.pointing import Pointing
from backends.probation import Judge, Ran
from backends.reload import Reload
from backends.reload_terms import (
    ROLLED_BACK,
    Action,
    Begin,
    Cancel,
    Commit,
    Failure,
    LoadFailed,
    Note,
    Quarantine,
    Release,
    Stage,
    Swap,
    Target,
)
from backends.watching import Watching


class Loaded(Protocol):
    """A version that a loader made."""

    @property
    def name(self) -> str: ...
    def release(self) -> None:
        """Give up the claim on the checkpoint. Blocks on the disk."""

    def discard(self) -> None:
        """That, and the memory: nothing runs on it any more."""


V = TypeVar("V", bound=Loaded)
V_co = TypeVar("V_co", bound=Loaded, covariant=True)
V_contra = TypeVar("V_contra", bound=Loaded, contravariant=True)


class Loader(Protocol[V_co]):
    """Called on a thread of its own, which it may keep busy."""

    def from_checkpoint(
        self,
        run: Run,
        target: Target,
        *,
        beside: bool,
        stage: Callable[[Stage], None],
        cancelled: Callable[[], bool],
    ) -> V_co:
        """`beside`: another version serves meanwhile. Raises LoadFailed."""
        ...


class Host(Protocol[V_contra]):
    """What the follower changes in its replica. `swap` and `release` call `done` on the loop once
    the device thread has done it."""

    def swap(
        self, version: V_contra, fallback: V_contra | None, done: Callable[[], None]
    ) -> None: ...
    def commit(self) -> None: ...
    def release(self, version: V_contra, done: Callable[[], None]) -> None: ...
    def changed(self) -> None: ...


class Follower(Generic[V]):
    def __init__(
        self,
        run: Run,
        channel: str,
        *,
        loader: Loader[V],
        reload: Reload,
        host: Host[V],
        events: Events,
        poll_s: float,
        slowdown: float,
        copy_of: str = "",
        look: Callable[[], None] = lambda: None,
    ) -> None:
        """`copy_of`: the place that the run is a copy of, where its channels are moved; `look` has
        it looked at now."""
        self._run, self._channel, self._loader = run, channel, loader
        self._reload, self._host, self._events = reload, host, events
        self._look = look
        self._loop = asyncio.get_running_loop()
        self._pointing = Pointing(run, events, copy_of)
        self._watching = Watching(
            run,
            channel,
            poll_s=poll_s,
            found=lambda record: self._post(self._found, record),
            unread=lambda reason: self._post(self._unread, reason),
        )
        self._versions: dict[str, V] = {}  # by manifest hash
        self._judge = Judge(slowdown)
        self._cancel = threading.Event()
        self._unreadable = ""
        self._seen_any = False

    def start(self) -> None:
        self._watching.start()

    def stop(self) -> None:
        """No more loads. `close` the versions once nothing is served from them."""
        self._watching.stop()
        self._cancel.set()

    def close(self) -> None:
        """Give up every lease; blocks on the disk."""
        for version in self._versions.values():
            version.release()

    # --------------------------------------------------------------------------------- what it is

    @property
    def stage(self) -> Stage:
        return self._reload.stage

    @property
    def loading_to(self) -> str:
        return self._reload.target.version if self._reload.target else ""

    @property
    def generation(self) -> int:
        return self._reload.generation

    @property
    def goal(self) -> Target | None:
        """What the channel has it serve, as far as it was seen."""
        return self._reload.goal

    @property
    def channel(self) -> str:
        return self._channel

    @property
    def refused(self) -> tuple[str, ...]:
        return tuple(target.version for target in self._reload.refused)

    @property
    def crowded(self) -> str:
        """A version for which there is room only in a new process."""
        return self._reload.crowded

    @property
    def stuck(self) -> bool:
        return self._reload.stuck

    def reason(self) -> str:
        """Why nothing is served yet, or what went wrong last."""
        if self._unreadable:
            return self._unreadable
        if not self._seen_any:
            where = f'channel "{self._channel}" of {self._run.root}'
            return f"waiting for the first published checkpoint in {where}"
        if self._reload.serving is None and self.loading_to:
            return f"loading {self.loading_to} ({self.stage})"
        return self._reload.problem

    # ------------------------------------------------------------------------------ what it is told

    def tick(self) -> None:
        self._do(self._reload.tick(time.monotonic()))

    def look_again(self) -> None:
        """An operator's reload: read the channel now, and try again what was refused here."""
        self._look()
        self._do(self._reload.retry(time.monotonic()))
        self._watching.look_again()

    def channel_moved(self) -> None:
        """Look at it now, not in `poll_s`. From any thread."""
        self._watching.look_again()

    def roll_back(self, version: str) -> None:
        """From that version, wherever it has got to here. Raises Conflict."""
        try:
            self._do(self._reload.give_up(version, ROLLED_BACK, time.monotonic()))
        except ValueError as error:
            raise Conflict(str(error)) from error

    def steer(self) -> None:
        """A gateway decides when a loaded version is swapped in; said again and again."""
        self._do(self._reload.steer(time.monotonic()))

    def allow(self, version: str) -> None:
        """Swap it in now. Raises Conflict when it does not wait for that."""
        try:
            self._do(self._reload.allow(version))
        except ValueError as error:
            raise Conflict(str(error)) from error

    def refuse(self, version: str, reason: str) -> None:
        self._do(self._reload.refuse(version, reason, time.monotonic()))

    def point(
        self, channel: str, like: str, version: str, before: str
    ) -> asyncio.Future[dict[str, Any]]:
        """As `Pointing` does. Raises Conflict."""
        return self._pointing(channel, like, version, before)

    def observe(self, batch: Ran) -> None:
        """A batch has run."""
        serving = self._reload.serving
        if serving is None:
            return
        why = self._judge.observe(batch, serving.version)
        if why:
            self._do(self._reload.regressed(why, time.monotonic()))

    # ------------------------------------------------------------------------------- what it does

    def _do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            self._one(action)
        fallback = self._reload.fallback if self.stage is Stage.PROBATION else None
        self._judge.compare(fallback.version if fallback else None)
        if actions:
            self._host.changed()

    def _one(self, action: Action) -> None:
        target = action.target
        match action:
            case Note():
                fields: dict[str, Any] = {"version": target.version}
                if action.reason:
                    fields["reason"] = action.reason
                self._events(action.event, generation=target.generation, **fields)
            case Begin():
                self._cancel = threading.Event()
                beside = self._reload.serving is not None
                self._background("load", self._load, target, beside, self._cancel)
            case Cancel():
                self._cancel.set()
            case Swap():
                version = self._versions[target.hash]
                fallback = self._versions[action.fallback.hash] if action.fallback else None
                self._host.swap(version, fallback, lambda: self._swapped(target))
            case Commit():
                self._host.commit()
            case Release():
                version = self._versions.pop(target.hash)
                self._judge.forget(target.version)
                self._host.release(version, lambda: self._background("release", version.discard))
            case Quarantine():
                why = {"reason": action.reason, "found_by": "replica"}
                self._background("quarantine", self._quarantine, target, why)

    def _background(self, name: str, work: Callable[..., None], *arguments: Any) -> None:
        # Ends with its work, or with the process: nothing waits for a disk that hangs.
        threading.Thread(target=work, args=arguments, name=name, daemon=True).start()

    # ------------------------------------------------------------------------- on other threads

    def _post(self, call: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: the replica has ended
            self._loop.call_soon_threadsafe(call, *arguments)

    def _load(self, target: Target, beside: bool, cancel: threading.Event) -> None:
        try:
            version = self._loader.from_checkpoint(
                self._run,
                target,
                beside=beside,
                stage=lambda stage: self._post(self._staged, target, stage),
                cancelled=cancel.is_set,
            )
        except LoadFailed as error:
            self._post(self._failed, target, error.failure, error.reason)
        except Exception as error:  # a defect of ours: the reload fails, the thread is no riddle
            self._post(self._failed, target, Failure.REFUSED, repr(error))
        else:
            self._post(self._loaded, target, version)

    def _quarantine(self, target: Target, why: dict[str, Any]) -> None:
        try:
            quarantine(self._run, target.hash, why)
        except (CheckpointError, OSError) as error:
            self._events("reload.not_quarantined", version=target.version, reason=str(error))
        else:
            self._events("reload.quarantined", version=target.version, **why)

    # ------------------------------------------------------------------------- back on the loop

    def _found(self, record: ChannelRecord | None) -> None:
        self._unreadable = ""
        if record is None:
            return
        self._seen_any = True
        entries = [record.entry, *record.behind()]
        targets = [Target(entry.step, entry.hash, entry.generation) for entry in entries]
        self._do(self._reload.want(targets, time.monotonic()))
        self._host.changed()

    def _unread(self, reason: str) -> None:
        if reason != self._unreadable:
            self._unreadable = reason
            self._events("channel.unreadable", reason=reason)
            self._host.changed()

    def _staged(self, target: Target, stage: Stage) -> None:
        self._do(self._reload.staged(target, stage))

    def _failed(self, target: Target, failure: Failure, reason: str) -> None:
        self._do(self._reload.failed(target, failure, reason, time.monotonic()))

    def _loaded(self, target: Target, version: V) -> None:
        self._versions[target.hash] = version
        self._judge.know(target.version)
        self._do(self._reload.loaded(target, time.monotonic()))

    def _swapped(self, target: Target) -> None:
        self._do(self._reload.swapped(target, time.monotonic()))
