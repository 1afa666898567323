"""Which version each native replica serves, and when it may take another one: the shell of a
gateway's one brain.

Owns a connection to every native replica, over which it hears STATUS and steers. It decides
nothing: `policy.rolling` and `canary` do. Invariant: a replica hears `steer` about once a second
while this lives; one that hears it no longer goes on by itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from backends.wire import Status
from gateway.canary import Canary
from gateway.config import GatewayConfig, ModelConfig
from gateway.control import ControlChannel, ControlError, open_replica
from gateway.events import Events
from gateway.metrics import Family
from gateway.policy.rollback import is_named
from gateway.policy.rolling import Finding, Order, Rolling, View

# A fifth of what a replica waits for the next word, unless its file says less.
STEER_S = 1.0
CALL_S = 5.0
# A channel is moved once every byte of the version was read.
POINT_S = 600.0
# A replica that has no room for two versions gets a new process at most so often.
ROOM_S = 30.0
# A replica that starts is met soon: what it must not load, it has to hear before.
RECONNECT_S = (0.05, 1.0)
SAID = {"swap": "swaps to", "refuse": "may not serve", "rollback": "goes back from"}

log = logging.getLogger("penstock.versions")

Json = dict[str, Any]


class Running(Protocol):
    @property
    def config(self) -> GatewayConfig: ...

    runtime: Path

    async def make_room(self, replica: str, version: str) -> None:
        """End its process and start another, which has room for the version."""


class Versions:
    """`run` it beside the replicas; it follows changes of the configuration by itself."""

    def __init__(self, running: Running, events: Events) -> None:
        self._running, self._events = running, events
        self._models: dict[str, Rolling] = {}
        self._canaries: dict[str, Canary] = {}
        self._links: dict[str, _Link] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        # When the replicas that need a new process may have one again.
        self._crowded: dict[str, float] = {}

    async def run(self, count: Callable[[], Awaitable[list[Family]]]) -> None:
        """Until cancelled. `count` gives the metrics of all workers."""
        try:
            while True:
                self._match()
                for name in self._models:
                    self._follow_up(name)
                if self._canaries:
                    await self._look(await count())
                await asyncio.sleep(STEER_S)
        finally:
            links = [link.task for link in self._links.values()]
            for task in [*links, *self._tasks]:
                task.cancel()
            await asyncio.gather(*links, *self._tasks, return_exceptions=True)

    def report(self, model: str) -> Json:
        """What operators are shown of a model's versions."""
        rolling = self._models.get(model)
        if rolling is None:
            return {"versions": {}, "skew_s": 0.0, "waiting": [], "refused": {}, "canary": None}
        now = asyncio.get_running_loop().time()
        return {
            "versions": rolling.versions(),
            "skew_s": round(rolling.skew_s(now), 3),
            "waiting": rolling.waiting,
            "refused": rolling.bad,
            "canary": self._canaries[model].report() if model in self._canaries else None,
        }

    async def promote(self, model: str) -> Json:
        """What is tried becomes what all serve. Raises ControlError."""
        if model not in self._canaries:
            raise ControlError(
                f"model {model!r} has no canary: set models.canary.channel for one",
                status=409,
                code="no_canary",
            )
        return await self._canaries[model].promote(self._models[model].views())

    async def rollback(self, model: str, version: str = "") -> Json | None:
        """The canary goes back to what all others serve; None where none is under way, or not that
        version's."""
        canary = self._canaries.get(model)
        tried = canary.tried(self._models[model].views()) if canary is not None else ""
        if canary is None or not tried or not is_named(tried, version or tried):
            return None
        return await canary.rollback(self._models[model].views())

    def recall(self, model: str, version: str) -> None:
        """An operator has rolled back from it: who comes later, or with it, hears that too."""
        if (rolling := self._models.get(model)) is not None:
            self._note(rolling.recall(model, version, "rolled back by an operator"))
            self._follow_up(model)

    async def _look(self, families: list[Family]) -> None:
        now = asyncio.get_running_loop().time()
        for name, canary in list(self._canaries.items()):
            await canary.look(self._models[name].views(), families, now)

    async def _ask(self, replica: str, op: str, **arguments: Any) -> Json:
        if (link := self._links.get(replica)) is None:
            raise ControlError(f"{replica} is gone", status=503, code="unreachable")
        return await link.call(op, within_s=POINT_S, **arguments)

    def forgive(self, model: str) -> None:
        """An operator has the replicas try again what was refused."""
        if (rolling := self._models.get(model)) is not None:
            rolling.forgive()

    # -------------------------------------------------------------------------------- its links

    def _match(self) -> None:
        """The configuration may have changed."""
        wanted = {
            replica.name: (model, replica.socket(self._running.runtime))
            for model, replica in self._running.config.replicas()
            if replica.kind == "native"
        }
        for name in [*self._links]:
            link = self._links[name]
            if name not in wanted or wanted[name] != (link.model, link.address):
                self._links.pop(name).task.cancel()
                self.gone(link)
        models = {model.name: model for model, _ in wanted.values()}
        self._models = {
            name: self._models.get(name) or Rolling(probation=model.rollout == "probation")
            for name, model in models.items()
        }
        for name, model in models.items():
            self._models[name].probation = model.rollout == "probation"
        kept = self._canaries
        self._canaries = {
            name: kept[name]
            if name in kept and kept[name].config == model.canary
            else Canary(name, model.canary, self._ask, self._events)
            for name, model in models.items()
            if model.canary.channel is not None
        }
        for name, (model, address) in wanted.items():
            if name not in self._links:
                self._links[name] = _Link(self, name, model, address)

    def heard(self, link: _Link, status: Status) -> None:
        rolling = self._models.get(link.model.name)
        if rolling is None:
            return
        view = View(
            version=status.version,
            reload=status.reload,
            reload_to=status.reload_to,
            channel=status.channel,
            refused=status.refused,
            reason=status.reason,
        )
        now = asyncio.get_running_loop().time()
        self._note(rolling.heard(link.name, view, now))
        self._follow_up(link.model.name)
        if status.crowded and status.crowded not in rolling.bad:
            self._make_room(link.name, status.crowded, now)

    def _make_room(self, replica: str, version: str, now: float) -> None:
        if now >= self._crowded.get(replica, 0.0):
            self._crowded = {n: due for n, due in self._crowded.items() if n in self._links}
            self._crowded[replica] = now + ROOM_S
            self._own(self._running.make_room(replica, version))

    def gone(self, link: _Link) -> None:
        rolling = self._models.get(link.model.name)
        if rolling is not None:
            self._note(rolling.gone(link.name, asyncio.get_running_loop().time()))
            self._follow_up(link.model.name)

    def _follow_up(self, model: str) -> None:
        orders, findings = self._models[model].decide(asyncio.get_running_loop().time())
        self._note(findings)
        for order in orders:
            self._own(self._tell(model, order))

    async def _tell(self, model: str, order: Order) -> None:
        arguments: Json = {"version": order.version}
        if order.op == "refuse":
            arguments["reason"] = order.reason
        link = self._links.get(order.replica)
        try:
            if link is None:
                raise ControlError(f"{order.replica} is gone")
            await link.call(order.op, **arguments)
        except ControlError as error:
            # It has gone on to another version, or away; what it says next decides.
            log.info("%s was not told to %s: %s", order.replica, order.op, error)
            if model in self._models:
                # One that has nowhere to go back to may have later; to a swap or a refusal this
                # says that it has only just started.
                cannot = order.op == "rollback" and error.code == "conflict"
                self._models[model].missed(order.replica, refused=cannot)
            return
        self._events.add("rollout", order.replica, f"{SAID[order.op]} {order.version}")

    def _note(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            log.info("%s %s: %s", finding.replica, finding.kind, finding.text)
            self._events.add("rollout", finding.replica, finding.text)

    def _own(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Link:
    """One replica's connection, made anew whenever it is lost."""

    def __init__(self, versions: Versions, name: str, model: ModelConfig, address: str) -> None:
        self._versions, self.name, self.model, self.address = versions, name, model, address
        self._channel: ControlChannel | None = None
        self.task = asyncio.get_running_loop().create_task(self._run(), name=f"steer {name}")

    async def call(self, op: str, *, within_s: float = CALL_S, **arguments: Any) -> Json:
        """Raises ControlError."""
        if self._channel is None:
            raise ControlError(f"{self.name} cannot be reached", status=503, code="unreachable")
        try:
            async with asyncio.timeout(within_s):
                return await self._channel.call(op, **arguments)
        except TimeoutError:
            raise ControlError(
                f"{self.name} did not answer within {within_s:g} s", status=504, code="timeout"
            ) from None

    async def _run(self) -> None:
        pause = RECONNECT_S[0]
        while True:
            try:
                self._channel = channel = await open_replica(self.address)
            except ControlError:
                await asyncio.sleep(pause)
                pause = min(2 * pause, RECONNECT_S[1])
                continue
            pause = RECONNECT_S[0]
            try:
                await self._listen(channel)
            except ControlError as error:
                log.info("%s: %s", self.name, error)
            finally:
                self._channel = None
                channel.close()
            self._versions.gone(self)

    async def _listen(self, channel: ControlChannel) -> None:
        """Until the connection is lost, which raises ControlError."""
        loop = asyncio.get_running_loop()
        heard: Status | None = None
        due = 0.0
        while True:
            # One that follows no channel has nothing to be steered.
            if heard is not None and heard.channel and loop.time() >= due:
                due = loop.time() + STEER_S
                await self.call("steer")
            with suppress(TimeoutError):
                async with asyncio.timeout(STEER_S):
                    heard = await channel.status(lambda status: status is not heard)  # noqa: B023
                if heard.model == self.model.name:
                    self._versions.heard(self, heard)
