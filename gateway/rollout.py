"""A changed configuration, put in place while serving.

Owns the order: the new file is checked whole, new replicas are ready before old ones are drained,
and a replica stops only when nothing is in flight on it. Invariant: a configuration that is refused
changes nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from gateway.config import ConfigError, GatewayConfig, Problem, ReplicaConfig
from gateway.config_access import KeyConfig
from gateway.config_lines import key_lines, line_of
from gateway.control import ControlError, replica_status
from gateway.events import Events
from gateway.http_address import address_of
from gateway.operations import Operations
from gateway.replica_process import ReplicaProcess, recipe
from gateway.settings import Settings

# Keys of [server] that may change while serving; the others made the sockets and the processes.
CHANGEABLE = frozenset({"drain_s", "watch_s"})
# A new replica that is not ready by then does not hold up the rest.
READY_S = 600.0
# How often the process of a new replica may die before it is given up.
HOPELESS = 3
# Of very many changed keys, so many are named.
NAMED = 5
# Added to a replica's name: the process beside the one that has the name.
BESIDE = "~"
# No event crosses from the other processes: they are asked.
POLL_S = 0.05
# So long one connection listens to what a loading replica says of itself.
LISTEN_S = 5.0

log = logging.getLogger("penstock.supervisor")


class Fleet(Protocol):
    """The processes of a supervisor, and how they are changed."""

    @property
    def replicas(self) -> Mapping[str, ReplicaProcess]: ...

    runtime: Path
    settings: Settings
    operations: Operations
    events: Events

    def spawn(self, replica: ReplicaConfig, *, beside: bool = False) -> None: ...
    def succeed(self, name: str) -> None: ...
    async def retire(self, name: str, *, grace_s: float = ...) -> None: ...
    async def wrong(self, config: GatewayConfig, names: Container[str]) -> list[str]: ...
    async def reconfigure_workers(self) -> None: ...


class Rollout:
    """One at a time; what comes meanwhile waits."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._lock = asyncio.Lock()

    async def on_signal(self) -> None:
        try:
            changed = await self.run()
        except ControlError as error:
            log.error("the configuration stays as it was:\n%s", error)
        else:
            log.info("the configuration was read again: %s", ", ".join(changed) or "no change")

    async def run(self) -> list[str]:
        """Read the file again and apply it; what changed, for people. Raises ControlError: nothing
        has changed then, or, when a replica that runs cannot start with its new file, the replicas
        after it still run with the old one."""
        async with self._lock:
            fleet = self._fleet
            try:
                new = fleet.settings.again()
                _refuse_fixed_keys(fleet.settings, new)
            except ConfigError as error:
                fleet.events.add("config", "gateway", f"refused: {error}")
                raise ControlError(str(error), status=400, code="bad_config") from error
            try:
                changed = await self._apply(new)
            except ControlError as error:
                fleet.events.add("config", "gateway", f"failed: {error}")
                raise
            fleet.events.add("config", "gateway", ", ".join(changed) or "read again; no change")
            return changed

    async def replace(self, model: str) -> list[str]:
        """A new process for each spawned replica of the model, one after another; their names.

        It loads, takes the place, and the old one answers what it has and ends. Raises
        ControlError: the replica that it names, and those after it, are as they were.
        """
        async with self._lock:
            spawned = [
                replica
                for found, replica in self._fleet.settings.config.replicas()
                if found.name == model and replica.spawned
            ]
            if not spawned:
                raise ControlError(
                    f"model {model!r} has no replica that this gateway spawns: restart them where "
                    "they run",
                    status=409,
                    code="not_spawned",
                )
            for replica in spawned:
                await self._replace(replica)
                self._fleet.events.add("replace", replica.name, "has a new process")
            return [replica.name for replica in spawned]

    async def make_room(self, name: str, version: str) -> None:
        """The replica cannot hold `version` beside the one that it serves: a new process can, once
        the old one has ended, if the model's other replicas serve meanwhile."""
        async with self._lock:
            fleet = self._fleet
            found = {each.name: each for _, each in fleet.settings.config.replicas()}.get(name)
            if found is None or not found.spawned or not await self._crowded(name, version):
                return
            if not await self._others_serve(name):
                why = f"has no room for {version} beside what it serves, and no other replica does"
                fleet.events.add("replace", name, f"{why}: give it memory, or a second replica")
                return
            fleet.events.add("replace", name, f"gets a new process, which has room for {version}")
            try:
                await self._replace_in_place(found)
            except ControlError as error:
                log.error("%s: %s", name, error)

    async def _crowded(self, name: str, version: str) -> bool:
        """Whether it still says so: others may have had their turn first."""
        status = await self._seen(name)
        return status is not None and status.get("crowded") == version

    async def _others_serve(self, name: str) -> bool:
        for model in (await self._fleet.operations.status())["models"]:
            names = {replica["name"] for replica in model["replicas"]}
            if name in names:
                return any(
                    replica["state"] == "ready" and replica["name"] != name
                    for replica in model["replicas"]
                )
        return False

    async def _seen(self, name: str) -> dict[str, Any] | None:
        for model in (await self._fleet.operations.status())["models"]:
            for replica in model["replicas"]:
                if replica["name"] == name:
                    return dict(replica)
        return None

    async def _apply(self, new: Settings) -> list[str]:
        fleet, old = self._fleet, self._fleet.settings
        wanted = {r.name: r for _, r in new.config.replicas() if r.spawned}
        listed = {replica.name for _, replica in new.config.replicas()}
        gone = [r.name for _, r in old.config.replicas() if r.name not in listed]
        added = [replica for name, replica in wanted.items() if name not in fleet.replicas]
        # Taken before anything changes: the file of a replica may be edited again meanwhile.
        changed = [
            replica
            for name, replica in wanted.items()
            if name in fleet.replicas and fleet.replicas[name].recipe != recipe(replica)
        ]
        if wrong := await fleet.wrong(new.config, {r.name for r in (*added, *changed)}):
            raise ControlError("\n".join(wrong), status=400, code="bad_config")
        for replica in added:
            fleet.spawn(replica)
        try:
            await asyncio.gather(*map(self._ready, added))
        except ControlError:
            await asyncio.gather(*(fleet.retire(replica.name) for replica in added))
            raise
        for name in gone:
            await fleet.operations.drain(name)
        await asyncio.gather(*map(self._idle, gone))
        fleet.settings = new
        fleet.operations.configured(new.config)
        await fleet.reconfigure_workers()
        no_longer = [name for name in fleet.replicas if name not in wanted]
        await asyncio.gather(*map(fleet.retire, no_longer))
        for replica in changed:
            await self._replace(replica)
        return _described(old, new, changed)

    async def _replace(self, replica: ReplicaConfig) -> None:
        """The same name with a new process: beside the old one where there is room for both."""
        if replica.kind == "native" and replica.replace == "beside":
            await self._replace_beside(replica)
        else:
            await self._replace_in_place(replica)

    async def _replace_beside(self, replica: ReplicaConfig) -> None:
        """The old process is touched when the new one is ready, and not before. Raises
        ControlError: the old one still serves."""
        fleet, name = self._fleet, replica.name
        turned = dataclasses.replace(replica, turn=replica.turn + 1)
        fleet.spawn(turned, beside=True)
        try:
            await self._ready(turned, name + BESIDE, must=True)
        except BaseException:
            await fleet.retire(name + BESIDE)
            raise
        fleet.succeed(name)
        fleet.settings = fleet.settings.turn(name, turned.turn)
        drained = fleet.operations.drained(name)
        await fleet.reconfigure_workers()
        if drained:
            await fleet.operations.drain(name)
        # It answers what it has, then ends by itself.
        await fleet.retire(name + BESIDE, grace_s=fleet.settings.config.server.drain_s)

    async def _replace_in_place(self, replica: ReplicaConfig) -> None:
        """One after the other, so that the other replicas serve."""
        fleet = self._fleet
        drained = fleet.operations.drained(replica.name)
        await fleet.operations.drain(replica.name)
        try:
            await self._idle(replica.name)
            await fleet.retire(replica.name)
            fleet.spawn(replica)
            await self._ready(replica)
        finally:
            if not drained:
                await fleet.operations.undrain(replica.name)

    async def _ready(self, replica: ReplicaConfig, key: str = "", *, must: bool = False) -> None:
        """Wait, within bounds, until it can serve. Raises ControlError when its process dies, or,
        if it `must`, when it is not ready in time."""
        key = key or replica.name
        process = self._fleet.replicas[key]
        child = process.child
        try:
            async with asyncio.timeout(READY_S):
                while not await _says_ready(replica, self._fleet.runtime):
                    if self._fleet.replicas.get(key) is not process:
                        raise ControlError("the gateway is stopping", status=503, code="stopping")
                    if child.restarts >= HOPELESS:
                        why = f"{replica.name} cannot start: its process {child.how} ({child.said})"
                        raise ControlError(why, status=409, code="replica_failed")
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            if must:
                why = f"the new process of {replica.name} was not ready within {READY_S:g} s"
                raise ControlError(why, status=504, code="not_ready") from None
            log.warning("%s was not ready within %g s; going on", replica.name, READY_S)

    async def _idle(self, name: str) -> None:
        """Wait until no worker has anything in flight on it, within the grace of a stop."""
        grace_s = self._fleet.settings.config.server.drain_s
        try:
            async with asyncio.timeout(grace_s):
                while await self._in_flight(name):  # noqa: ASYNC110
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            log.warning("%s was not idle within %g s; going on", name, grace_s)

    async def _in_flight(self, name: str) -> int:
        status = await self._fleet.operations.status()
        found = (r for model in status["models"] for r in model["replicas"] if r["name"] == name)
        return sum(replica["in_flight"] for replica in found)


async def _says_ready(replica: ReplicaConfig, runtime: Path) -> bool:
    try:
        async with asyncio.timeout(LISTEN_S):
            if replica.kind == "http":
                return await _accepts(address_of(replica, runtime) or "")
            address = replica.socket(runtime)
            await replica_status(address, lambda status: status.state == "ready")
    except (ControlError, TimeoutError):
        return False
    return True


async def _accepts(address: str) -> bool:
    """Whether an HTTP server listens there; workers look at more before they use it."""
    try:
        if address.startswith("unix:"):
            _, writer = await asyncio.open_unix_connection(address.removeprefix("unix:"))
        else:
            host, _, port = address.removeprefix("http://").partition(":")
            _, writer = await asyncio.open_connection(host, int(port))
    except (OSError, ValueError):
        return False
    writer.close()
    return True


def _refuse_fixed_keys(old: Settings, new: Settings) -> None:
    """Raises ConfigError for each key of [server] that only a restart can change."""
    lines = key_lines(new.text)
    problems = []
    for item in dataclasses.fields(new.config.server):
        name = item.name
        was, now = getattr(old.config.server, name), getattr(new.config.server, name)
        if name not in CHANGEABLE and was != now:
            line = line_of(lines, ("server", name))
            shown = "" if name.startswith("admin_key") else f" from {was} to {now}"
            problems.append(
                Problem(
                    origin=f"{new.path}:{line}",
                    line=line,
                    key=f"server.{name}",
                    expected=f"cannot change{shown} while serving; restart the gateway for it",
                )
            )
    if problems:
        raise ConfigError(new.path, problems)


def _described(old: Settings, new: Settings, changed: list[ReplicaConfig]) -> list[str]:
    before = {replica.name: replica for _, replica in old.config.replicas()}
    after = {replica.name: replica for _, replica in new.config.replicas()}
    models_before = {model.name: model for model in old.config.models}
    models_after = {model.name: model for model in new.config.models}
    return [
        *(f"model {name} is new" for name in models_after if name not in models_before),
        *(f"model {name} is gone" for name in models_before if name not in models_after),
        *(
            f"model {name} has other limits"
            for name, model in models_after.items()
            if name in models_before
            and dataclasses.replace(models_before[name], replicas=())
            != dataclasses.replace(model, replicas=())
        ),
        *(f"replica {name} is new" for name in after if name not in before),
        *(f"replica {name} is gone" for name in before if name not in after),
        *(f"replica {replica.name} was replaced" for replica in changed),
        *(
            f"replica {name} has changed"
            for name in after
            if name in before and after[name] != before[name]
        ),
        *_keys_described({key.name: key for key in old.config.keys}, new.config.keys),
        *(["the routes have changed"] if old.config.routes != new.config.routes else []),
    ]


def _keys_described(before: Mapping[str, KeyConfig], now: Sequence[KeyConfig]) -> list[str]:
    after = {key.name: key for key in now}
    found = {
        "new": [name for name in after if name not in before],
        "gone": [name for name in before if name not in after],
        "changed": [name for name in after if name in before and before[name] != after[name]],
    }
    return [
        f"keys {how}: {', '.join(names[:NAMED])}"
        + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        for how, names in found.items()
        if names
    ]
