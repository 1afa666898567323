"""A language-model replica put together: what its sockets, its engine and its reloads make of it.

Owns the hand-over between the replica's threads; its state is kept in its `Standing`. Lives on the
event loop's thread and loads torch only in the background. Invariant: what STATUS says is true: a
starting replica answers at once, and none is ready before it has generated.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from backends.config import ReplicaConfig
from backends.control import Control
from backends.errors import NotReady, Unsupported, VersionNotFound
from backends.events import Events
from backends.server import Connection, Server
from backends.standing import Standing
from backends.wire import Frame, Status

if TYPE_CHECKING:
    from backends.follower import Follower
    from backends.llm.calls import Calls, Ended
    from backends.llm.generation import Output
    from backends.llm.loading import LlmLoader, LlmVersion
    from backends.llm.machine import Machine
    from backends.llm.text import TextModel
    from backends.source import Source

# How often clocks are looked at: the end of a probation, a device that hangs.
TICK_S = 0.25
# The load changes with every step; gateways hear of it so often.
STATUS_S = 0.1
# A device that fails at every step must not fill the disk with saying so.
CRASHED_EVERY_S = 1.0
# Answers with fewer tokens say nothing of the time that one takes.
LEAST_TOKENS = 8


# (config, emit, crashed): both are called on the device thread.
Build = Callable[
    [ReplicaConfig, "Callable[[list[Output]], None]", Callable[[BaseException], None]],
    "tuple[LlmLoader, Machine]",
]


def _build(
    config: ReplicaConfig,
    emit: Callable[[list[Output]], None],
    crashed: Callable[[BaseException], None],
) -> tuple[LlmLoader, Machine]:
    from backends.llm.boot import build

    return build(config, emit, crashed)


class Answered(NamedTuple):
    """What a version did for one call: see `backends.follower.Ran`. Rows are calls that ran beside
    it, seconds are those of a token."""

    version: str
    rows: int
    seconds: float
    requests: int
    failed: int
    regressed: str = ""


class LlmReplica:
    """An engine for `Server`. `start` it once the loop runs; `drain`, wait `settled`, `close`.

    `imported` is called in the background once everything that takes memory for good is there.
    `build` makes what serves, in the background too.
    """

    def __init__(
        self,
        config: ReplicaConfig,
        events: Events,
        imported: Callable[[], None] = lambda: None,
        build: Build | None = None,
    ) -> None:
        self._config, self._events, self._imported = config, events, imported
        self._build = build or _build
        self._loop = asyncio.get_running_loop()
        self.server = Server(self, events)
        self._control = Control(self, events)
        self._machine: Machine | None = None
        self._calls: Calls | None = None
        self._standing: Standing[LlmVersion] = Standing(
            config,
            events,
            self.changed,
            busy_s=self._busy_s,
            work="a step",
            measure="step_s",
            amiss=lambda: self._machine.slow if self._machine is not None else "",
        )
        # Set when only a new process can serve: the device is lost.
        self.broken = asyncio.Event()
        # Of the device thread: when it last told of a step that failed, and how many since.
        self._crashed_at, self._crashes = 0.0, 0
        self._ticker: asyncio.TimerHandle | None = None
        self._pushing: asyncio.TimerHandle | None = None

    def start(self) -> None:
        threading.Thread(target=self._boot, name="boot", daemon=True).start()
        self._ticker = self._loop.call_later(TICK_S, self._tick)

    # ------------------------------------------------------------------------------ what it says

    def status(self) -> Status:
        return self._standing.status(slots=self._config.max_running, load=self._load())

    def _load(self) -> dict[str, float]:
        calls, machine = self._calls, self._machine
        load = machine.load if machine is not None else None
        if machine is None or load is None or calls is None:
            return {}
        numbers = {name: round(float(value), 3) for name, value in asdict(load).items()}
        return numbers | {
            "page_size": float(self._config.page_size),
            "step_s": round(machine.busy_s(), 3),
            "calls": float(len(calls)),
            "calls_done": float(calls.done),
            "calls_failed": float(calls.failed),
            "calls_cancelled": float(calls.cancelled),
        }

    def _busy_s(self) -> float:
        return self._machine.busy_s() if self._machine is not None else 0.0

    # ----------------------------------------------------------------------------- what is asked

    def call(self, connection: Connection, frame: Frame) -> None:
        self._standing.ready()
        assert self._calls is not None  # they come before the first version
        self._calls.take(connection, frame)
        self._changed_soon()

    def execute(self, connection: Connection, frame: Frame) -> None:
        raise Unsupported("this replica serves text; it executes no batches of tensors")

    def cancel(self, connection: Connection, id: int) -> None:
        if self._calls is not None:
            self._calls.cancel(connection, id)

    def lost(self, connection: Connection) -> None:
        if self._calls is not None:
            self._calls.lost(connection)

    def control(
        self, op: str, arguments: dict[str, Any]
    ) -> dict[str, Any] | asyncio.Future[dict[str, Any]]:
        return self._control(op, arguments)

    @property
    def following(self) -> Follower[LlmVersion] | None:
        return self._standing.follower

    def _text(self, version: str | None) -> TextModel:
        """Of that version, or of what serves."""
        if version is not None:
            found = self._standing.versions.get(version)
            if found is None:
                live = ", ".join(self._standing.versions) or "none"
                raise VersionNotFound(f"version {version} is not live here; live are {live}")
            return found.text
        serving = self._standing.serving
        if serving is None:
            raise NotReady("the replica has no version yet")
        return serving.text

    # --------------------------------------------------------------------------------- its end

    def drain(self, reason: str) -> None:
        """Take no more; what was accepted is still answered."""
        self._standing.drain(reason)

    def undrain(self) -> None:
        self._standing.undrain()

    @property
    def settled(self) -> bool:
        """Nothing is owed to anybody."""
        return not self._calls and self.server.drained

    async def close(self) -> None:
        """Answer what is still owed with a fault; stop the threads; close the sockets."""
        for timer in (self._ticker, self._pushing):
            if timer is not None:
                timer.cancel()
        subscription = self._standing.subscription
        if subscription is not None:
            subscription.stop()
        if self._calls is not None:
            self._calls.close(NotReady("the replica ends"))
        await self.server.close()

    def join(self, seconds: float) -> bool:
        """Blocks until the threads have ended and the leases are given up; False if some hang."""
        ended = self._machine is None or self._machine.close(seconds)
        subscription = self._standing.subscription
        return (subscription is None or subscription.close(seconds)) and ended

    # ---------------------------------------------------------------------- on the other threads

    def _post(self, call: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: there is nobody left to tell
            self._loop.call_soon_threadsafe(call, *arguments)

    def _boot(self) -> None:
        began = time.monotonic()
        try:
            loader, machine = self._build(self._config, self._emit, self._crashed)
            from backends.source import Source

            source = Source(self._config, self._events, lambda: self._post(self.changed))
            self._imported()
            self._events("booted", seconds=round(time.monotonic() - began, 3))
            self._post(self._follow, loader, machine, source)
        except BaseException as error:  # a defect of ours must be told of, not swallowed
            self._post(self._standing.fail, str(error) or type(error).__name__)

    def _emit(self, outputs: list[Output]) -> None:
        self._post(self._deliver, outputs)

    def _crashed(self, error: BaseException) -> None:
        """A step failed; those who were in it hear of it by their outputs."""
        from backends.tensor.boot import device_is_lost, where

        self._crashes += 1
        now = time.monotonic()
        if now - self._crashed_at >= CRASHED_EVERY_S:
            fields = {"error": repr(error)[:500], "where": where(error)}
            self._events("device.crashed", steps=self._crashes, **fields)
            self._crashed_at, self._crashes = now, 0
        lost = self._machine.lost if self._machine is not None else ""
        if device_is_lost(error):
            lost = f"the device is lost: {error}"
        if lost:
            self._post(self._break, lost)

    # --------------------------------------------------------------------------- back on the loop

    def _follow(self, loader: LlmLoader, machine: Machine, source: Source) -> None:
        from backends.llm.calls import Calls
        from backends.llm.prepare import Preparation
        from backends.llm.structured.grammars import Grammars
        from backends.llm.surfaces.setting import Setting
        from backends.subscription import Subscription

        self._machine = machine
        self._calls = Calls(
            Preparation(Setting(self._config.model, Grammars())),
            self._events,
            engine=lambda: machine.engine,
            text=self._text,
            load=self._load,
            ended=self._ended,
        )
        subscription = Subscription(self._config, source, loader, self, self._events)
        self._standing.subscription = subscription
        subscription.start()
        self.changed()

    def _deliver(self, outputs: list[Output]) -> None:
        if self._calls is not None:
            self._calls.outputs(outputs)
            self._changed_soon()

    def _ended(self, ended: Ended) -> None:
        follower = self._standing.follower
        if follower is None or self._calls is None:
            return
        enough = ended.tokens >= LEAST_TOKENS
        if enough or ended.failed:
            seconds = ended.seconds / (ended.tokens - 1) if enough else 0.0
            # Without a time, it stands in a class of its own.
            beside = len(self._calls) + 1 if enough else 0
            follower.observe(Answered(ended.version, beside, seconds, 1, int(ended.failed)))

    def _break(self, reason: str) -> None:
        """Only a new process can serve."""
        if not self.broken.is_set():
            self._standing.fail(reason)
            self.broken.set()

    def _tick(self) -> None:
        self._ticker = self._loop.call_later(TICK_S, self._tick)
        if self._machine is not None and self._machine.lost:
            self._break(self._machine.lost)
        self._standing.tick()

    def _changed_soon(self) -> None:
        """The load has changed."""
        if self._pushing is None:
            self._pushing = self._loop.call_later(STATUS_S, self._push)

    def _push(self) -> None:
        self._pushing = None
        self.server.push_status()

    # ------------------------------------------------------------------ for the follower: `Host`

    def changed(self) -> None:
        self.server.push_status()

    def swap(
        self, version: LlmVersion, fallback: LlmVersion | None, done: Callable[[], None]
    ) -> None:
        """`fallback` stays live by itself, until it is released."""
        machine, twin = self._machine, version.twin
        assert machine is not None
        if twin is not None:
            machine.exchange(
                version.name, twin, lambda error: self._post(self._exchanged, version, error, done)
            )
            return
        # From now on: what is asked between now and the swap may already be answered by it.
        self._standing.versions[version.name] = version

        def swapped() -> None:
            before, self._standing.serving = self._standing.serving, version
            if before is None:
                self._events("ready", version=version.name)
                if machine.slow:
                    self._events("slow", reason=machine.slow)
            done()
            self.changed()

        machine.serve(version.name, lambda: self._post(swapped))

    def _exchanged(
        self, version: LlmVersion, error: BaseException | None, done: Callable[[], None]
    ) -> None:
        if error is not None:
            self._break(f"the weights of two versions were exchanged in part: {error}")
            return
        before, self._standing.serving = self._standing.serving, version
        assert before is not None
        before.twin, version.twin = version.twin, None
        self._standing.versions.pop(before.name, None)
        self._standing.versions[version.name] = version
        done()
        self.changed()

    def commit(self) -> None:
        """The old version goes by its release."""

    def release(self, version: LlmVersion, done: Callable[[], None]) -> None:
        machine = self._machine
        assert machine is not None
        self._standing.versions.pop(version.name, None)
        if version.twin is not None:
            version.twin = None
            self._post(done)
            return
        machine.release(version.name, self._config.finish_s, lambda: self._post(done))
