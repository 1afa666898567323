"""An HTTP server as the gateway sees it: its connections, its health, its load, its breaker.

Owns one task that looks at it now and then. It never chooses requests. Invariant: a replica that
was found unreachable, by a request or by that task, gets no request until it has been found well.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from gateway.config import RelayConfig, ReplicaConfig
from gateway.policy.breaker import Breaker
from gateway.policy.load import ReplicaLoad
from gateway.policy.slowstart import SlowStart
from gateway.relay.endpoint import Endpoint
from gateway.relay.health import ask_health
from gateway.relay.pool import ConnectionPool

if TYPE_CHECKING:
    from gateway.relay.inquest import Death, Loss

log = logging.getLogger(__name__)

# One that is away is looked at often: it may be back within its start-up time.
AWAY_S = (0.05, 1.0)
# A look may take so long; a server under load answers slowly, and is not dead for that.
LOOK_S = 5.0
# So many looks in a row must fail before one that can be reached counts as unwell.
FALL = 2
# Connections beyond those of requests: for looks, and such as are being closed.
SPARE = 64
# What a server without configured slots surely takes at a time; sessions spill beyond their share
# and this.
TYPICAL_SLOTS = 8


class HttpReplica:
    """`locate()`: where it listens now, None while that is not known. `on_change()` is called when
    its state changed, `on_return(self)` when it is there again with nothing of what it had in
    memory, `on_look(losses, gone)` when a look has told whether it is there after those."""

    kind = "http"

    def __init__(
        self,
        name: str,
        config: ReplicaConfig,
        relay: RelayConfig,
        locate: Callable[[], Endpoint | None],
        *,
        on_change: Callable[[], None],
        on_return: Callable[[HttpReplica], None],
        on_look: Callable[[Sequence[Loss], bool], None],
        breaker: Breaker,
        loop: asyncio.AbstractEventLoop,
        rng: random.Random,
    ) -> None:
        self.name, self.breaker = name, breaker
        self.load = ReplicaLoad(
            name,
            weight=config.weight,
            slots=config.slots or TYPICAL_SLOTS,
            slow_start=SlowStart(),
        )
        # Requests at a time; more wait in the queue, not for a connection.
        self.limit = min(config.slots or relay.connections, relay.connections)
        # Of one table, the lowest rank that can serve does; the others are in reserve.
        self.table, self.rank, self.reserve = config.name, 0, False
        self.served_by = b"x-served-by: %b\r\n" % name.encode()
        self.busy_until = 0.0
        # The pool's: when it answered last; whether it was answering anybody, and when that was so.
        self.heard, self.looked, self.answers = float("-inf"), -1.0, False
        self.host: bytes | None = None  # None: the client's
        self.prefix = b""
        self.condition, self.why = "loading", "not looked at yet"
        self.restarts = 0  # how often it came back
        self.newcomer = False  # others served before it came: it begins slowly
        self.met = asyncio.Event()  # it has been looked at
        self.death: Death | None = None  # when its connections broke last
        self.losses: list[Loss] = []  # connections that broke since it was looked at
        self._config, self._relay, self._locate = config, relay, locate
        self._on_change, self._loop, self._rng = on_change, loop, rng
        self._on_return, self._on_look = on_return, on_look
        self._renewed = False  # its process is, or will be, another one
        self._endpoint: Endpoint | None = None
        self._connections: ConnectionPool | None = None
        self._look_now = asyncio.Event()
        self._failures = 0
        self._retired: Callable[[], object] | None = None

    # ------------------------------------------------------------------------------- what it is

    @property
    def address(self) -> str:
        return "" if self._endpoint is None else str(self._endpoint)

    @property
    def connections(self) -> ConnectionPool:
        assert self._connections is not None  # it was found well, so its address is known
        return self._connections

    @property
    def state(self) -> str:
        """ready, loading, draining, unreachable: what routing may rely on."""
        if self.condition == "ready" and (self.load.drained or self._retired is not None):
            return "draining"
        return self.condition

    @property
    def ready(self) -> bool:
        return self.state == "ready"

    def describe(self, now: float) -> dict[str, Any]:
        """For operators; the same keys as those of native replicas."""
        load = self.load
        return {
            "name": self.name,
            "kind": self.kind,
            "address": self.address,
            "state": self.state,
            "reason": self.why or ("in reserve, by its priority in DNS" if self.reserve else ""),
            "version": "",
            "versions": [],
            "generation": self.restarts,
            "reload": "idle",
            "reload_to": "",
            "pid": 0,
            "weight": load.weight,
            "drained": load.drained,
            "breaker": self.breaker.state(now).name.lower(),
            "work": round(load.work, 6),
            "unit": "requests",
            "in_flight": load.in_flight,
            "slots": self.limit,
            "connections": 0 if self._connections is None else self._connections.open,
        }

    # --------------------------------------------------------------------------- what it is told

    def busy(self, until: float) -> None:
        """It asked to be left alone until then."""
        self.busy_until = max(self.busy_until, until)

    def unreachable(self, why: str) -> None:
        """A request could not connect."""
        self._renewed = True
        self._set("unreachable", why)
        self._look_now.set()

    def look_soon(self) -> None:
        """Something makes one wonder whether it is there."""
        self._look_now.set()

    def renewed(self) -> None:
        """Its process has ended, or another one was started."""
        self._renewed = True
        self._look_now.set()

    def drain(self, now: float) -> None:
        self.load.drain(now)
        self._on_change()

    def undrain(self, now: float) -> None:
        self.load.undrain(now)
        self._on_change()

    def retire(self, on_empty: Callable[[], object]) -> None:
        """Take no more; `on_empty` is called once nothing is in flight."""
        self._retired = on_empty
        self._on_change()
        self.settled()

    def settled(self) -> None:
        """A request has left it."""
        if self._retired is not None and not self.load.in_flight:
            self._retired()

    # ------------------------------------------------------------------------------ its one task

    async def run(self) -> None:
        """Look at it until cancelled."""
        pause = AWAY_S[0]
        try:
            while True:
                self._look_now.clear()
                await self._look_about()
                self.met.set()
                if self.condition == "ready":
                    pause, wait = AWAY_S[0], self._config.health_s
                else:
                    wait, pause = pause, min(2 * pause, AWAY_S[1])
                try:
                    async with asyncio.timeout(wait * self._rng.uniform(0.8, 1.2)):
                        await self._look_now.wait()
                except TimeoutError:
                    continue
        finally:
            if self.losses:
                self._on_look(self.losses, False)  # nobody will look any more
            if self._connections is not None:
                await self._connections.close()

    async def _look_about(self) -> None:
        """Look at it, and tell what that says of the connections that broke before."""
        losses, self.losses, gone = self.losses, [], False
        try:
            gone = await self._look()
        finally:
            if losses:
                self._on_look(losses, gone)

    async def _look(self) -> bool:
        """Whether it is not there at all."""
        endpoint = self._locate()
        if endpoint is None:
            self._away("its process has not been started yet")
            return False
        if endpoint != self._endpoint:
            await self._move(endpoint)
        gone = False
        try:
            async with asyncio.timeout(LOOK_S):
                wrong = await ask_health(self.connections, endpoint, self._config.health)
        except (OSError, TimeoutError) as error:
            wrong, gone = str(error) or "no answer to a look at its health", True
            if not isinstance(error, TimeoutError):
                self._failures = FALL  # refused, or no route: certainly not there
        if wrong is None:
            self._failures = 0
            if not self.losses:  # else they are another look's
                self.death = None
            if self._renewed:
                self._renewed = False
                self._on_return(self)
            self._set("ready", "")
            return False
        self._failures += 1
        self._renewed |= gone and self._failures >= FALL
        if self._failures >= FALL or self.condition != "ready":
            self._away(wrong)
        return gone

    def _away(self, why: str) -> None:
        """A process of ours that has never answered is still coming."""
        first = self.condition == "loading" and self._config.command is not None
        self._set("loading" if first else "unreachable", f"starting: {why}" if first else why)

    async def _move(self, endpoint: Endpoint) -> None:
        """It listens elsewhere now."""
        old, self._endpoint = self._connections, endpoint
        self.prefix = endpoint.prefix
        self.host = endpoint.authority if self._relay.host == "replica" else None
        self._connections = ConnectionPool(
            endpoint,
            self._loop,
            limit=self._relay.connections + SPARE,
            connect_s=self._relay.connect_ms / 1e3,
        )
        if old is not None:
            await old.close()

    def _set(self, condition: str, why: str) -> None:
        before, self.condition, self.why = self.condition, condition, why
        if before == condition:
            return
        log.info("replica=%s state=%s reason=%s", self.name, condition, why)
        if condition == "ready":
            self.restarts += before == "unreachable"
            if self.newcomer or before == "unreachable":
                self.load.restart(self._loop.time())
        self._on_change()
