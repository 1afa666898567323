"""The parent of all processes of a gateway: workers, spawned replicas, and their order of coming
and going.

Owns the listening sockets, the private folder of the replicas' sockets, every child and every task
of this process. It handles no request. Invariants: a dead child is replaced without the others
noticing, and when `run` returns no child, socket or folder is left.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import sys
from collections.abc import Awaitable, Callable, Container, Coroutine, Sequence
from typing import Any, Protocol

from gateway.config import GatewayConfig, ReplicaConfig, ServerConfig
from gateway.control import ControlError
from gateway.events import Events
from gateway.listening import Listening
from gateway.operations import Operations, Render
from gateway.process import Backoff, Child
from gateway.replica_files import Looked
from gateway.replica_process import ReplicaProcess
from gateway.rollout import BESIDE, Rollout
from gateway.runtime import RuntimeFolder
from gateway.settings import Settings
from gateway.versions import Versions
from gateway.watching import Watching
from gateway.worker_process import CONFIGURE_S, WorkerProcess

# A replica has nothing to finish once the workers are gone, but its device may take a while.
REPLICA_GRACE_S = 10.0
# How long the replicas wait for the workers to be there.
WORKERS_FIRST_S = 5.0
WORKER_COMMAND = (sys.executable, "-m", "gateway", "worker")
REPLICA_COMMAND = (sys.executable, "-m", "backends", "serve")

log = logging.getLogger("penstock.supervisor")


class AdminServer(Protocol):
    async def close(self) -> None: ...


# Called when the workers have been started: what it imports must not delay them. So is `render`,
# of metrics.
LookAt = Callable[[GatewayConfig, Container[str]], Looked]
OpenAdmin = Callable[[Operations, Listening, ServerConfig], Awaitable[AdminServer]]


class Supervisor:
    """Raises ListenError where an address cannot be had. `run` once, on the loop that made it.
    `look_at` finds what is wrong with replicas that are not started yet; it may take a while."""

    def __init__(
        self,
        settings: Settings,
        open_admin: OpenAdmin,
        *,
        version: str,
        render: Render,
        worker_command: Sequence[str] = WORKER_COMMAND,
        replica_command: Sequence[str] = REPLICA_COMMAND,
        look_at: LookAt | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.settings, self.state = settings, "starting"
        self.replicas: dict[str, ReplicaProcess] = {}
        self.events = Events()
        self._rng = rng or random.Random()
        self._open_admin, self._replica_command = open_admin, replica_command
        self._look_at = look_at
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._forced = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._children: dict[Child, asyncio.Task[None]] = {}
        self._launched = asyncio.Event()
        server = settings.config.server
        self._public = Listening(
            server.listen, server.workers, key="server.listen", tls=server.tls.used
        )
        try:
            self._private = Listening(
                server.admin, 1, key="server.admin", tls=server.admin_tls.used
            )
        except BaseException:
            self._public.close()
            raise
        self.listen, self.admin = self._public.url, self._private.url
        self._folder = RuntimeFolder()
        self.runtime = self._folder.path
        self.versions = Versions(self, self.events)
        self.operations = Operations(self, self.events, version=version, render=render)
        self.handlers = {
            "status": self._answer_status,
            "metrics": self._answer_metrics,
            "statistics": self._answer_statistics,
            "load": self._answer_load,
            "unload": self._answer_unload,
        }
        self.workers = [
            WorkerProcess(f"worker-{number}", sock, worker_command, self, self._backoff())
            for number, sock in enumerate(self._public.sockets)
        ]
        self._rollout = Rollout(self)

    @property
    def config(self) -> GatewayConfig:
        return self.settings.config

    # -------------------------------------------------------------------------------- its course

    async def run(self) -> int:
        """Serve until a signal, or until a worker turns out not to start; the exit status."""
        self._handle_signals()
        admin: AdminServer | None = None
        try:
            for worker in self.workers:
                self._keep(worker.child)
            log.info("listening on %s, admin on %s", self.listen, self.admin)
            await self._launched.wait()
            admin = await self._open_admin(self.operations, self._private, self.config.server)
            self._own(self._start_replicas())
            self._own(self.operations.watch())
            self._own(Watching(lambda: self.settings, self._rollout.on_signal).run())
            self._own(self.versions.run(self.operations.families))
            status = await self._ended
        finally:
            await self._shut_down()
            if admin is not None:
                await admin.close()
            await asyncio.gather(*self._children.values(), return_exceptions=True)
            await self._end_tasks()
            self._private.close()
            self._folder.close()
            self._forget_signals()
            log.info("stopped")
        return 128 + self._forced if self._forced else status

    async def _start_replicas(self) -> None:
        """After the workers, which are small: loading models takes the whole machine."""
        try:
            async with asyncio.timeout(WORKERS_FIRST_S):
                await asyncio.gather(*(worker.configured.wait() for worker in self.workers))
        except TimeoutError:
            log.warning("some workers are not ready yet; starting the replicas beside them")
        for _, replica in self.config.replicas():
            if replica.spawned and replica.name not in self.replicas:
                self.spawn(replica)
        self.state = "serving"

    async def _shut_down(self) -> None:
        """Workers first, with their requests; then the replicas that answered them."""
        self.state = "stopping"
        self.events.add("stop", "gateway", "stopping: requests may finish")
        await self._end_tasks()
        for worker in self.workers:
            worker.child.no_restart()
        # The workers have their own copies; ours would only let clients wait for nothing.
        self._public.close()
        grace_s = self.config.server.drain_s
        await asyncio.gather(*(worker.stop(grace_s) for worker in self.workers))
        await asyncio.gather(*(self.retire(name) for name in list(self.replicas)))

    async def _end_tasks(self) -> None:
        """What starts, watches and changes the processes."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---------------------------------------------------------------------------------- children

    def spawn(self, replica: ReplicaConfig, *, beside: bool = False) -> None:
        """`beside`: next to the process of that name, until `succeed` or `retire`. Raises
        ControlError once the gateway is stopping: nobody would stop it any more."""
        if self.state == "stopping":
            raise ControlError("the gateway is stopping", status=503, code="stopping")
        process = ReplicaProcess(
            replica,
            self.runtime,
            self._replica_command,
            self._backoff(),
            folder=self.config.path.resolve().parent,
            died=self._replica_died,
            renewed=lambda replica: self._own(self.operations.renewed(replica.name)),
        )
        self.replicas[replica.name + (BESIDE if beside else "")] = process
        self._keep(process.child)

    def succeed(self, name: str) -> None:
        """The process beside takes the name; the old one is now the one beside."""
        old, new = self.replicas[name], self.replicas[name + BESIDE]
        self.replicas |= {name: new, name + BESIDE: old}

    async def retire(self, name: str, *, grace_s: float = REPLICA_GRACE_S) -> None:
        """Stop its process for good. Who retires a replica has drained it, or gives it the time to
        answer what it has."""
        if (replica := self.replicas.get(name)) is not None:
            await replica.child.stop(grace_s)
            self.replicas.pop(name, None)

    async def make_room(self, replica: str, version: str) -> None:
        await self._rollout.make_room(replica, version)

    async def replace(self, model: str) -> list[str]:
        return await self._rollout.replace(model)

    async def reconfigure_workers(self) -> None:
        """Those that are ready; the others get the newest settings when they are."""
        ready = [worker for worker in self.workers if worker.ready]
        message = self.message()
        answers = await asyncio.gather(
            *(worker.call("reconfigure", within_s=CONFIGURE_S, **message) for worker in ready),
            return_exceptions=True,
        )
        for worker, answer in zip(ready, answers, strict=True):
            if isinstance(answer, BaseException):
                log.error("%s could not take the configuration: %s; replaced", worker.name, answer)
                worker.child.kill()

    async def reread(self) -> list[str]:
        return await self._rollout.run()

    async def wrong(self, config: GatewayConfig, names: Container[str]) -> list[str]:
        """What is wrong with the spawned replicas of these names, without starting them."""
        if self._look_at is None:
            return []
        looked = await asyncio.to_thread(self._look_at, config, names)
        return [str(finding) for finding in looked.findings if finding.wrong]

    def _keep(self, child: Child) -> None:
        task = asyncio.get_running_loop().create_task(child.run(), name=child.name)
        self._children[child] = task
        task.add_done_callback(lambda _: self._children.pop(child))

    def _own(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the supervisor failed", exc_info=error)

    def _backoff(self) -> Backoff:
        return Backoff(self._rng)

    def _replica_died(self, replica: ReplicaProcess, how: str, wait_s: float) -> None:
        self._report_death("replica", replica.name, replica.child, how, wait_s)

    def _report_death(self, kind: str, name: str, child: Child, how: str, wait_s: float) -> None:
        when = f"again in {wait_s:.1f} s" if wait_s else "again at once"
        # By itself it ends for a reason, and says it last; what is killed has said something else.
        told = how.startswith("exited") and child.said and not child.said.startswith("{")
        why = f" ({child.said})" if told else ""
        log.error("%s %s%s; it is started %s", name, how, why, when)
        self.events.add(f"{kind}_died", name, f"{how}{why}; started {when}")

    # --------------------------------------------------------------------------- for its workers

    def message(self) -> dict[str, Any]:
        return self.settings.message(self.runtime)

    def amendments(self) -> Sequence[tuple[str, dict[str, Any]]]:
        return self.operations.amendments()

    def worker_launched(self, worker: WorkerProcess) -> None:
        if all(each.life for each in self.workers):
            self._launched.set()

    def worker_ready(self, worker: WorkerProcess) -> None:
        log.info("%s is ready as process %d", worker.name, worker.child.pid)
        self.events.add("worker_ready", worker.name, f"process {worker.child.pid}")

    def worker_died(self, worker: WorkerProcess, how: str, wait_s: float) -> None:
        self.operations.worker_gone(worker)
        self._report_death("worker", worker.name, worker.child, how, wait_s)

    def hopeless(self, why: str) -> None:
        if not self._ended.done():
            log.error("giving up: %s", why)
            self._end(1)

    async def _answer_status(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return await self.operations.status()

    async def _answer_metrics(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return {"text": await self.operations.metrics()}

    async def _answer_statistics(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return {"workers": await self.operations.statistics()}

    async def _answer_load(self, arguments: dict[str, Any]) -> dict[str, Any]:
        await self.operations.load(arguments["model"])
        return {}

    async def _answer_unload(self, arguments: dict[str, Any]) -> dict[str, Any]:
        await self.operations.unload(arguments["model"])
        return {}

    # ----------------------------------------------------------------------------------- signals

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop, number)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._own(self._rollout.on_signal()))

    def _forget_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            asyncio.get_running_loop().remove_signal_handler(number)

    def stop(self, number: signal.Signals) -> None:
        """What a signal does; the first lets requests finish, the second does not."""
        if not self._ended.done():
            log.info("%s: stopping; requests may finish, a second signal ends them", number.name)
            self._end(0)
            return
        log.warning("%s again: killing what still runs", number.name)
        self._forced = number
        for child in self._children:
            child.no_restart()
            child.kill()

    def _end(self, status: int) -> None:
        if not self._ended.done():
            self._ended.set_result(status)
