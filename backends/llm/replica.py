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
from typing import TYPE_CHECKING, Any

from backends.config import ReplicaConfig
from backends.control import Control
from backends.crashes import Crashes
from backends.errors import NotReady, Unsupported
from backends.events import Events
from backends.llm.answered import answered
from backends.server import Connection, Server
from backends.standing import Standing
from backends.wire import Frame, Status

if TYPE_CHECKING:
    from backends.follower import Follower
    from backends.llm.calls import Calls, Ended
    from backends.llm.generation import Output
    from backends.llm.loading import LlmLoader, LlmVersion
    from backends.llm.machine import Machine
    from backends.source import Source

# How often clocks are looked at: the end of a probation, a device that hangs.
TICK_S = 0.25
# The load changes with every step; gateways hear of it so often.
STATUS_S = 0.1


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
        self._crashes = Crashes(events, "device.crashed", "steps")
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

    def bar(self, version: str, reason: str) -> None:
        self._standing.bar(version, reason)

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
        lost = self._crashes(error)
        if not lost and self._machine is not None:
            lost = self._machine.lost
        if lost:
            self._post(self._break, lost)

    # --------------------------------------------------------------------------- back on the loop

    def _follow(self, loader: LlmLoader, machine: Machine, source: Source) -> None:
        from backends.llm.calls import Calls
        from backends.llm.prepare import Preparation
        from backends.llm.serving import Serving
        from backends.llm.structured.grammars import Grammars
        from backends.llm.surfaces.setting import Setting
        from backends.subscription import Subscription

        self._machine = machine
        serving = Serving(
            self._config,
            machine,
            self._standing,
            self._events,
            post=self._post,
            changed=self.changed,
            broken=self._break,
        )
        self._calls = Calls(
            Preparation(Setting(self._config.model, Grammars())),
            self._events,
            engine=lambda: machine.engine,
            text=serving.text,
            load=self._load,
            ended=self._ended,
        )
        subscription = Subscription(self._config, source, loader, serving, self._events)
        self._standing.follow(subscription)
        self.changed()

    def _deliver(self, outputs: list[Output]) -> None:
        if self._calls is not None:
            self._calls.outputs(outputs)
            self._changed_soon()

    def _ended(self, ended: Ended) -> None:
        follower = self._standing.follower
        if follower is None or self._calls is None:
            return
        said = answered(ended, beside=len(self._calls))
        if said is not None:
            follower.observe(said)

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

    def changed(self) -> None:
        self.server.push_status()
