"""A tensor replica put together: what its sockets, its device thread and its reloads make of it.

Owns the hand-over between the replica's threads; its state is kept in its `Standing`. Lives on the
event loop's thread and loads torch only in the background. Invariant: what STATUS says is true: a
starting replica answers at once, and none is ready before a batch has run.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from backends.config import ReplicaConfig
from backends.control import Control
from backends.crashes import Crashes
from backends.errors import BackendError, NotReady
from backends.events import Events
from backends.server import Connection, Server
from backends.standing import Standing
from backends.tensor.job import Job
from backends.tensor.ledger import Ledger
from backends.tensor.texts import Owner, Texts
from backends.wire import Frame, Status
from backends.worker import DeviceThread, Intake

if TYPE_CHECKING:
    from backends.follower import Follower
    from backends.source import Source
    from backends.tensor.boot import Parts
    from backends.tensor.executor import Answer, Batch, Executor
    from backends.tensor.loading import Loader, Version

# How often clocks are looked at: the end of a probation, a device that hangs.
TICK_S = 0.25
# After batches at least so long, the device waits for several gateways' next ones: a part of what
# the batch took, and no longer than a message needs there and back.
LONG_S, LINGER_SHARE, LINGER_S = 0.01, 0.02, 0.001
# Batches that take longer than this are told of while they run.
SLOW_S = 1.0


class TensorReplica:
    """An engine for `Server`. `start` it once the loop runs; `drain`, wait `settled`, `close`.

    `imported` is called in the background once everything that takes memory for good is there.
    """

    def __init__(
        self, config: ReplicaConfig, events: Events, imported: Callable[[], None] = lambda: None
    ) -> None:
        self._config, self._events, self._imported = config, events, imported
        self._loop = asyncio.get_running_loop()
        self.server = Server(self, events)
        self._control = Control(self, events)
        self._intake: Intake[Job] = Intake(config.max_intake)
        self._ledger = Ledger(self._intake, config.max_intake)
        self._texts = Texts(self._take, self._ledger.lost)
        self._device = DeviceThread(self._intake, self._execute, self._crashed)
        self._executor: Executor | None = None
        self._loader: Loader | None = None
        self._standing: Standing[Version] = Standing(
            config,
            events,
            self.changed,
            busy_s=self._device.busy_s,
            work="the batch",
            measure="batch_s",
        )
        # Set when only a new process can serve: the device is lost.
        self.broken = asyncio.Event()
        self._raised = Crashes(events, "model.raised", "batches")
        self._batches = self._rows = 0
        # Connections that batches came from.
        self._sources: set[Connection] = set()
        self._ticker: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._device.start()
        threading.Thread(target=self._boot, name="boot", daemon=True).start()
        self._ticker = self._loop.call_later(TICK_S, self._tick)

    # ------------------------------------------------------------------------------ what it says

    def status(self) -> Status:
        serving = self._standing.serving
        return self._standing.status(
            slots=self._config.slots,
            signature=serving.signature.to_json() if serving else None,
            surfaces=("embeddings",) if serving and serving.text else (),
            load={
                "waiting_rows": float(self._intake.rows),
                "batch_s": round(self._device.busy_s(), 3),
                "batches": float(self._batches),
                "rows": float(self._rows),
            },
        )

    # ----------------------------------------------------------------------------- what is asked

    def execute(self, connection: Connection, frame: Frame) -> None:
        serving = self._standing.ready()
        self._sources.add(connection)
        self._ledger.take(connection, frame, serving, self._standing.versions)

    def call(self, connection: Connection, frame: Frame) -> None:
        """Texts, where the model takes tokens and its checkpoint has a tokenizer."""
        self._texts.call(connection, frame, self._standing.ready().text)

    def _take(self, owner: Owner, frame: Frame) -> None:
        self._ledger.take(owner, frame, self._standing.ready(), self._standing.versions)

    def cancel(self, connection: Connection, id: int) -> None:
        self._ledger.cancel(connection, id)
        self._texts.cancel(connection, id)

    def lost(self, connection: Connection) -> None:
        self._sources.discard(connection)
        self._ledger.lost(connection)
        self._texts.lost(connection)

    def control(
        self, op: str, arguments: dict[str, Any]
    ) -> dict[str, Any] | asyncio.Future[dict[str, Any]]:
        return self._control(op, arguments)

    @property
    def following(self) -> Follower[Version] | None:
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
        return self._ledger.empty and self.server.drained

    async def close(self) -> None:
        """Answer what is still owed with a fault; stop the threads; close the sockets."""
        if self._ticker is not None:
            self._ticker.cancel()
        subscription = self._standing.subscription
        if subscription is not None:
            subscription.stop()
        self._ledger.fail_all(NotReady("the replica ends").fault())
        self._intake.close()
        await self.server.close()

    def join(self, seconds: float) -> bool:
        """Blocks until the threads have ended and the leases are given up; False if some hang."""
        ended = self._device.join(seconds)
        subscription = self._standing.subscription
        return (subscription is None or subscription.close(seconds)) and ended

    # ---------------------------------------------------------------------- on the other threads

    def _post(self, call: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: there is nobody left to tell
            self._loop.call_soon_threadsafe(call, *arguments)

    def _boot(self) -> None:
        began = time.monotonic()
        try:
            from backends.tensor.boot import build, limit_threads

            self._intake.call(lambda: limit_threads(self._config))
            parts = build(
                self._config,
                post=lambda answers, batch: self._post(self._deliver, answers, batch),
                on_error=self._model_raised,
            )
            self._imported()
            self._events("booted", seconds=round(time.monotonic() - began, 3))
            if self._config.class_ is None:
                from backends.source import Source

                source = Source(self._config, self._events, lambda: self._post(self.changed))
                self._post(self._follow, parts, source)
            else:
                self._post(self._attach, parts)
                version = parts.loader.from_class(self._config.class_, self._config.config)
                self._post(self.swap, version, None, lambda: None)
        except BaseException as error:  # a model's module may even raise SystemExit
            self._post(self._standing.fail, str(error) or type(error).__name__)

    def _execute(self, jobs: Sequence[Job]) -> None:
        assert self._executor is not None
        began = time.monotonic()
        self._executor(jobs)
        took = time.monotonic() - began
        if len(self._sources) > 1 and took >= LONG_S:
            # Several gateways learn now that the device is free. What they send at once should run
            # together: whoever misses this batch waits for all of it.
            self._executor.give_up(self._intake)
            time.sleep(min(LINGER_S, took * LINGER_SHARE))

    def _crashed(self, jobs: Sequence[Job], error: BaseException) -> None:
        """A defect of ours on the device thread: these jobs fail, the thread goes on."""
        self._events("device.crashed", error=repr(error))
        fault = BackendError(f"internal error: {error!r}").fault()
        self._post(self._deliver, [(job, fault) for job in jobs], None)

    def _model_raised(self, error: BaseException, rows: int) -> None:
        lost = self._raised(error, rows=rows)
        if lost:
            self._post(self._standing.fail, lost)
            self._post(self.broken.set)

    # --------------------------------------------------------------------------- back on the loop

    def _attach(self, parts: Parts) -> None:
        self._executor = parts.executor
        self._standing.starting = f"loading {self._config.class_}"
        self.changed()

    def _follow(self, parts: Parts, source: Source) -> None:
        from backends.subscription import Subscription

        self._executor, self._loader = parts.executor, parts.loader
        subscription = Subscription(self._config, source, parts.loader, self, self._events)
        self._standing.follow(subscription)
        self.changed()

    def _deliver(self, answers: Sequence[Answer], batch: Batch | None) -> None:
        for job, outcome in answers:
            self._ledger.answer(job, outcome)
        if batch is not None:
            self._batches += 1
            self._rows += batch.rows
            follower = self._standing.follower
            if follower is not None:
                follower.observe(batch)

    def _tick(self) -> None:
        self._ticker = self._loop.call_later(TICK_S, self._tick)
        self._standing.tick()
        if self._device.busy_s() > SLOW_S:
            self.changed()

    # ------------------------------------------------------------------ for the follower: `Host`

    def changed(self) -> None:
        self.server.push_status()

    def swap(self, version: Version, fallback: Version | None, done: Callable[[], None]) -> None:
        executor = self._executor
        assert executor is not None

        def swapped(pause_s: float) -> None:
            self._events("device.swapped", version=version.name, pause_us=round(pause_s * 1e6, 1))
            standing = self._standing
            before, standing.serving = standing.serving, version
            live = {**standing.versions, version.name: version}
            standing.versions = {n: each for n, each in live.items() if not each.shadow}
            if self._loader is not None:
                self._loader.serving = version
            if before is None:
                self._events("ready", version=version.name)
            done()
            self.changed()

        def on_device() -> None:
            began = time.perf_counter()
            executor.serve(version, fallback)
            self._post(swapped, time.perf_counter() - began)

        self._intake.call(on_device)

    def commit(self) -> None:
        assert self._executor is not None
        self._intake.call(self._executor.commit)

    def release(self, version: Version, done: Callable[[], None]) -> None:
        executor = self._executor
        assert executor is not None
        self._standing.versions.pop(version.name, None)

        def on_device() -> None:
            executor.release(version.name)
            self._post(done)

        self._intake.call(on_device)
