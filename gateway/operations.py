"""What operators and pages can ask of a whole gateway: its status, its metrics, its switches.

Owns what operators have changed (drains, weights), so that a worker that comes later is told too,
and puts the workers' answers together. It starts and stops no process: the supervisor does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from gateway.config import GatewayConfig, ModelConfig, ReplicaConfig
from gateway.control import ControlError, call_replica
from gateway.counts import Counts
from gateway.events import Events, changes, failures
from gateway.metrics import Family, Ledger, gateway_families, merge
from gateway.overview import Json, overview
from gateway.policy.rollback import Said, Unclear, newest, resolve
from gateway.process import Child
from gateway.replica_process import ReplicaProcess
from gateway.versions import Versions
from gateway.worker_process import WorkerProcess

# A replica answers at once; what it was asked for comes later, and shows in its status.
REPLICA_S = 30.0
# What an operator is told of a replica's answer, which is its whole STATUS.
TOLD = ("state", "version", "reload", "reload_to", "generation")
EVENTS_SHOWN = 40
WATCH_S = 1.0

log = logging.getLogger("penstock.supervisor")

T = TypeVar("T")
Render = Callable[[list[Family]], str]


class Running(Protocol):
    """The processes and what they run; the supervisor's, only looked at here."""

    @property
    def config(self) -> GatewayConfig: ...
    @property
    def state(self) -> str: ...
    @property
    def workers(self) -> Sequence[WorkerProcess]: ...
    @property
    def replicas(self) -> Mapping[str, ReplicaProcess]: ...

    versions: Versions
    runtime: Path
    listen: str
    admin: str

    async def reread(self) -> list[str]:
        """Read the configuration again and apply it; what changed. Raises ControlError."""

    async def replace(self, model: str) -> list[str]:
        """A new process for each spawned replica; their names. Raises ControlError."""


class Operations:
    """`version` is the gateway's own; `render` makes text of metric families."""

    def __init__(self, running: Running, events: Events, *, version: str, render: Render) -> None:
        self._running, self._version, self._render = running, version, render
        self.events = events
        self._started = time.monotonic()
        self._drained: set[str] = set()
        self._weights: dict[str, float] = {}
        self._unloaded: set[str] = set()
        self._ledger, self._counts = Ledger(), Counts()
        # A page that many look at is put together once for all of them.
        self.status = Shared(self._status)
        self.metrics = Shared(self._metrics)

    # ------------------------------------------------------------------------------------- views

    async def _status(self) -> Json:
        running = self._running
        reports = await self._ask_all("status")
        processes = {name: _process(each.child) for name, each in running.replicas.items()}
        models = overview(running.config, [answer for _, answer in reports], processes)
        for worker, answer in reports:
            self._counts.seen(f"{worker.name}/{worker.life}", answer["models"])
        for model in models:
            model["counters"] = self._counts.of(model["name"])
            model["rollout"] = running.versions.report(model["name"])
        return {
            "version": self._version,
            "state": running.state,
            "pid": os.getpid(),
            "uptime_s": round(time.monotonic() - self._started, 3),
            "listen": running.listen,
            "admin": running.admin,
            "config": str(running.config.path),
            "workers": [worker.describe() for worker in running.workers],
            "models": models,
            "events": self.events.since(limit=EVENTS_SHOWN),
        }

    async def families(self) -> list[Family]:
        """What all workers have counted, those that are gone included."""
        reports = await self._ask_all("metrics")
        for worker, answer in reports:
            self._ledger.seen(f"{worker.name}/{worker.life}", answer["families"])
        return self._ledger.total()

    async def _metrics(self) -> str:
        total = await self.families()
        own: list[Family] = gateway_families(await self.status())
        return self._render(merge([total, own]))

    async def statistics(self) -> list[Json]:
        """What each worker has counted of its models; for a worker, which adds it up."""
        return [answer["models"] for _, answer in await self._ask_all("statistics")]

    async def _ask_all(self, op: str) -> list[tuple[WorkerProcess, Json]]:
        """The answers of the workers that answer; a dead or hung one must not hide the others."""

        async def ask(worker: WorkerProcess) -> tuple[WorkerProcess, Json] | None:
            try:
                return worker, await worker.call(op)
            except ControlError:
                return None

        answers = await asyncio.gather(*map(ask, self._running.workers))
        return [answer for answer in answers if answer is not None]

    async def watch(self) -> None:
        """Note what becomes of the replicas, until cancelled."""
        before: list[Json] = []
        while True:
            await asyncio.sleep(WATCH_S)
            after = (await self.status())["models"]
            for kind, name, text in changes(before, after):
                self.events.add(kind, name, text)
            for model, name, reason in failures(before, after):
                log.error("%s cannot serve %s: %s", name, model, reason)
            before = after

    # ---------------------------------------------------------------------------------- switches

    async def drain(self, replica: str) -> None:
        """No new batches for it; what it has ends. Raises ControlError, as all of these."""
        self._find(replica)
        self._drained.add(replica)
        await self._tell_all("drain", replica=replica)
        self.events.add("drain", replica, "drained by an operator")

    async def undrain(self, replica: str) -> None:
        self._find(replica)
        self._drained.discard(replica)
        await self._tell_all("undrain", replica=replica)
        self.events.add("drain", replica, "taken back by an operator")

    async def weight(self, replica: str, weight: float) -> None:
        self._find(replica)
        self._weights[replica] = weight
        await self._tell_all("weight", replica=replica, weight=weight)
        self.events.add("weight", replica, f"weight {weight:g}")

    async def renewed(self, replica: str) -> None:
        """The process of an http replica has ended, or another one runs."""
        # A worker that cannot be told finds out when it looks, or has forgotten all itself.
        with suppress(ControlError):
            await self._tell_all("renewed", replica=replica)

    async def load(self, model: str) -> None:
        """Back into service, after a look at what its replicas follow."""
        self._model(model)
        self._unloaded.discard(model)
        await self._tell_all("load", model=model)
        self.events.add("load", model, "taken into service")
        try:
            await self.reload(model)
        except ControlError as error:
            # Replicas that follow no channel have nothing to look at; they serve all the same.
            if error.status != 409:
                raise

    async def unload(self, model: str) -> None:
        """Out of service: what is there is answered, nothing new is taken."""
        self._model(model)
        self._unloaded.add(model)
        await self._tell_all("unload", model=model)
        self.events.add("load", model, "taken out of service")

    async def reload(self, model: str) -> Json:
        """Every native replica looks at its channel now; what they said by name."""
        self._running.versions.forgive(model)
        return await self._replicas_do(model, "reload")

    async def promote(self, model: str) -> Json:
        """What the canary tries becomes what all serve."""
        self._model(model)
        return await self._running.versions.promote(model)

    async def rollback(self, model: str, version: str = "") -> Json:
        """The canary goes back to what the others serve; where none is under way, every native
        replica goes back from the newest version, or from the one that is named, and none further,
        whatever each has seen. Who is not there is told when it comes."""
        native = self._native(model, "roll back")
        if (canaried := await self._running.versions.rollback(model, version)) is not None:
            return canaried
        heard = await self._ask_replicas(native, "status")
        said = {n: _said(a) for n, a in heard.items() if not isinstance(a, ControlError)}
        canary = self._model(model).canary.channel
        try:
            bad = resolve(said.values(), version) if version else newest(said.values(), canary)
        except Unclear as error:
            raise ControlError(str(error), status=409, code="no_version") from error
        # Only they can say that there is nothing to go back to.
        know = [each for each in native if each.name in said and said[each.name].goal == bad]
        answers = await self._ask_replicas(know, "rollback", version=bad)
        failed = {n: a for n, a in answers.items() if isinstance(a, ControlError)}
        if failed and len(failed) == len(answers):
            raise _failure("rollback", failed)
        self._running.versions.recall(model, bad)
        others = [each for each in native if each not in know]
        answers |= await self._ask_replicas(others, "rollback", version=bad)
        for name, answer in answers.items():
            text = f"refused: {answer}" if isinstance(answer, ControlError) else "asked for"
            self.events.add("rollback", name, f"from {bad}: {text}")
        replicas = {n: _told(answers[n]) for n in sorted(answers)}
        return {"model": model, "from": bad, "replicas": replicas}

    async def replace(self, model: str) -> Json:
        """New processes, which load what the channel points at, take the replicas' places."""
        self._model(model)
        return {"model": model, "replaced": await self._running.replace(model)}

    async def reread(self) -> list[str]:
        """Read the configuration again and apply it."""
        return await self._running.reread()

    def drained(self, replica: str) -> bool:
        return replica in self._drained

    def amendments(self) -> list[tuple[str, Json]]:
        """The operations that bring a fresh worker to what operators have changed."""
        return [
            *(("drain", {"replica": name}) for name in sorted(self._drained)),
            *(("weight", {"replica": n, "weight": w}) for n, w in sorted(self._weights.items())),
            *(("unload", {"model": name}) for name in sorted(self._unloaded)),
        ]

    def configured(self, config: GatewayConfig) -> None:
        """Another configuration applies: its weights do, and what is gone is forgotten."""
        self._weights.clear()
        listed = {replica.name for _, replica in config.replicas()}
        self._drained = {name for name in self._drained if name.partition("@")[0] in listed}
        self._unloaded &= {model.name for model in config.models}

    def worker_gone(self, worker: WorkerProcess) -> None:
        life = f"{worker.name}/{worker.life}"
        self._ledger.gone(life)
        self._counts.gone(life)

    async def _tell_all(self, op: str, **arguments: Any) -> None:
        """A worker that is not there now learns it when it comes."""
        ready = [worker for worker in self._running.workers if worker.ready]
        answers = await asyncio.gather(
            *(worker.call(op, **arguments) for worker in ready), return_exceptions=True
        )
        for answer in answers:
            if isinstance(answer, ControlError) and answer.code in (
                "connection_closed",
                "not_ready",
            ):
                continue
            if isinstance(answer, BaseException):
                raise answer

    async def _replicas_do(self, model: str, op: str) -> Json:
        by_name = await self._ask_replicas(self._native(model, op), op)
        failed = {n: a for n, a in by_name.items() if isinstance(a, ControlError)}
        for name in by_name:
            self.events.add(op, name, f"refused: {failed[name]}" if name in failed else "asked for")
        if failed:
            raise _failure(op, failed)
        return {"model": model, "replicas": {name: _told(by_name[name]) for name in by_name}}

    async def _ask_replicas(
        self, replicas: Sequence[ReplicaConfig], op: str, **arguments: str
    ) -> dict[str, Json | ControlError]:
        async def ask(address: str) -> Json | ControlError:
            try:
                async with asyncio.timeout(REPLICA_S):
                    return await call_replica(address, op, **arguments)
            except TimeoutError:
                return ControlError(f"no answer within {REPLICA_S:g} s", status=504, code="timeout")
            except ControlError as error:
                return error

        addresses = [replica.socket(self._running.runtime) for replica in replicas]
        answers = await asyncio.gather(*map(ask, addresses))
        return {replica.name: answer for replica, answer in zip(replicas, answers, strict=True)}

    def _native(self, model: str, op: str) -> list[ReplicaConfig]:
        native = [each for each in self._model(model).replicas if each.kind == "native"]
        if not native:
            raise ControlError(
                f"model {model!r} has no native replica to {op}", status=409, code="not_native"
            )
        return native

    def _find(self, name: str) -> None:
        known = [replica.name for _, replica in self._running.config.replicas()]
        if name.partition("@")[0] not in known:  # one address of a name has it before an @
            raise ControlError(
                f"there is no replica {name!r}; known: {', '.join(known)}",
                status=404,
                code="replica_not_found",
            )

    def _model(self, name: str) -> ModelConfig:
        for model in self._running.config.models:
            if model.name == name:
                return model
        known = ", ".join(model.name for model in self._running.config.models)
        raise ControlError(
            f"there is no model {name!r}; known: {known}", status=404, code="model_not_found"
        )


class Shared(Generic[T]):
    """Calls made while one is under way get that one's result."""

    def __init__(self, make: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._make = make
        self._task: asyncio.Task[T] | None = None

    async def __call__(self) -> T:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._make())
            self._task.add_done_callback(self._done)
        # A caller that goes away must not take the others' answer with it.
        return await asyncio.shield(self._task)

    def _done(self, task: asyncio.Task[T]) -> None:
        self._task = None
        if not task.cancelled():
            task.exception()  # each caller has had it; there may be none left


def _said(status: Json) -> Said:
    versions = {status["version"], status["reload_to"], *status["versions"]} - {""}
    # A replica of an earlier release has no goal to tell.
    goal, generation = status.get("goal", ""), status.get("goal_generation", 0)
    return Said(status["channel"], goal, generation, frozenset(versions))


def _told(answer: Json | ControlError) -> Json:
    if isinstance(answer, ControlError):
        return {"error": answer.message}
    return {key: answer[key] for key in TOLD if key in answer}


def _failure(op: str, failed: Mapping[str, Json | ControlError]) -> ControlError:
    text = "; ".join(f"{name}: {error}" for name, error in failed.items())
    first = next(error for error in failed.values() if isinstance(error, ControlError))
    return ControlError(f"{op} failed on {text}", status=first.status, code=first.code)


def _process(child: Child) -> Json:
    return {
        "pid": child.pid,
        "state": child.state,
        "restarts": child.restarts,
        "how": child.how,
        "said": child.said,
    }
