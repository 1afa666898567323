"""A native replica as the gateway sees it: its link, its newest status, its load, its breaker.

Owns one task that keeps a link to the replica's address and connects again when it is lost. It
never chooses requests: the dispatcher does. Invariant: `generation` grows with every link, leases
belong to one generation, and a replica without a link that said "ready" gets no batch.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any

from backends.wire import GENERATIVE, Buffer, Call, Kind, Signature, Status
from gateway.link import Caller, Link, OnAnswer
from gateway.policy.breaker import Breaker
from gateway.policy.load import ReplicaLoad
from gateway.policy.service import ServiceCurve

log = logging.getLogger(__name__)

PING_S = 1.0
# Silence on the socket thread for this long means that the process hangs, whatever TCP thinks.
SILENT_S = 5.0
# A replica on this host comes back within its start-up time; a short pause costs nothing.
RECONNECT_S = (0.02, 1.0)

_NOT_CONNECTED = Status(model="", kind="", state="unreachable", reason="not connected yet")


class NativeReplica:
    """`on_change()` is called when its state, versions or link changed."""

    kind = "native"

    def __init__(
        self,
        name: str,
        address: str,
        *,
        model: str,
        weight: float,
        gateway: str,
        on_change: Callable[[], None],
        breaker: Breaker,
        rng: random.Random,
        expects: str | None = None,
    ) -> None:
        self.name, self.address, self.model = name, address, model
        self.expects = expects  # of what kind it must be; None: of any
        self.load = ReplicaLoad(name, weight=weight, slots=1)
        # What its calls weigh, in tokens: no unit that batches could be compared with.
        self.calls = ReplicaLoad(name, weight=weight, slots=1)
        self.breaker = breaker
        self.status = _NOT_CONNECTED
        self.signature: Signature | None = None
        self.curves: dict[str, ServiceCurve] = {}
        # When the batches that it has should be done, and how long they take in all.
        self._free_at = self._takes_s = 0.0
        self._gateway, self._on_change, self._rng = gateway, on_change, rng
        self._link: Link | None = None
        self._lost = asyncio.Event()
        # Set once it has been heard, or could not be reached, for the first time.
        self.met = asyncio.Event()
        self._retired: Callable[[], object] | None = None

    # ------------------------------------------------------------------------------- what it is

    @property
    def state(self) -> str:
        """ready, loading, draining, failed, unreachable: what routing may rely on."""
        if self.status.state == "ready" and (self.load.drained or self._retired is not None):
            return "draining"
        return self.status.state

    @property
    def ready(self) -> bool:
        return self.state == "ready"

    def curve(self, version: str | None) -> ServiceCurve:
        """Service times of the version that would execute (None: the one served now). Learnt anew
        for each version: a reload may change the model's speed."""
        name = version or self.status.version
        curve = self.curves.get(name)
        if curve is None:
            live = {self.status.version, *self.status.versions}
            self.curves = {old: c for old, c in self.curves.items() if old in live}
            curve = self.curves[name] = ServiceCurve()
        return curve

    @property
    def surfaces(self) -> tuple[str, ...]:
        """The forms of calls that it answers."""
        status = self.status
        return status.surfaces or (GENERATIVE if status.kind == "llm" else ())

    @property
    def in_flight(self) -> int:
        return self.load.in_flight + self.calls.in_flight

    def serves(self, version: str | None) -> bool:
        return version is None or version in self.status.versions

    def describe(self, now: float) -> dict[str, Any]:
        """For operators; `gateway status` and the dashboard show it."""
        status, load = self.status, self.load
        return {
            "name": self.name,
            "kind": self.kind,
            "address": self.address,
            "state": self.state,
            "reason": status.reason,
            "version": status.version,
            "versions": list(status.versions),
            "generation": status.generation,
            "reload": status.reload,
            "reload_to": status.reload_to,
            "channel": status.channel,
            "crowded": status.crowded,
            "pid": status.pid,
            "weight": load.weight,
            "drained": load.drained,
            "breaker": self.breaker.state(now).name.lower(),
            "work": round((self.calls if status.kind == "llm" else load).work, 6),
            "unit": "tokens" if status.kind == "llm" else "rows",
            "in_flight": self.in_flight,
            "slots": load.slots,
            "load": status.load or {},
        }

    # --------------------------------------------------------------------------- what it is told

    def execute(self, meta: Any, data: Any, on_answer: OnAnswer) -> int:
        assert self._link is not None
        return self._link.send(Kind.EXECUTE, meta, data, on_answer=on_answer)

    def call(self, call: Call, body: Buffer, caller: Caller) -> int:
        """Send a generative request. Raises WireError where it is too large to be sent."""
        assert self._link is not None
        return self._link.call(call.to_json(), body, caller)

    def ahead_s(self, now: float) -> float:
        """Predicted seconds until what it has is done; 0 when that is overdue."""
        return max(0.0, self._free_at - now) if self.load.in_flight else 0.0

    def began(self, takes_s: float, now: float) -> None:
        """It was given a batch that takes so long."""
        if not self.load.in_flight:
            self._takes_s = 0.0
        self._takes_s += takes_s
        self._free_at = max(self._free_at, now) + takes_s

    def ended(self, takes_s: float, now: float) -> None:
        """A batch of so many predicted seconds has landed, and the next one begins now."""
        self._takes_s = max(0.0, self._takes_s - takes_s)
        self._free_at = now + self._takes_s

    def cancel(self, id: int) -> None:
        if self._link is not None:
            self._link.cancel(id)

    def drain(self, now: float) -> None:
        """Nothing new until `undrain`; what it has is answered."""
        self.load.drain(now)
        self.calls.drain(now)
        self._on_change()

    def undrain(self, now: float) -> None:
        self.load.undrain(now)
        self.calls.undrain(now)
        self._on_change()

    def set_weight(self, weight: float, now: float) -> None:
        self.load.set_weight(weight, now)
        self.calls.set_weight(weight, now)

    def recovered(self, now: float) -> None:
        """Its breaker has closed: slow start."""
        self.load.restart(now)
        self.calls.restart(now)

    def retire(self, on_empty: Callable[[], object]) -> None:
        """Take no more; `on_empty` is called once nothing is in flight."""
        self._retired = on_empty
        self.settled()

    def settled(self) -> None:
        """A flight or a call has ended; called after each."""
        if self._retired is not None and not self.in_flight:
            self._retired()

    # ------------------------------------------------------------------------------ its one task

    async def run(self) -> None:
        """Keep a link until cancelled."""
        loop = asyncio.get_running_loop()
        pause = RECONNECT_S[0]
        while True:
            self._lost.clear()
            generation = self.load.generation
            try:
                link = await self._connect(loop)
            except (OSError, TimeoutError) as error:
                self._set_unreachable(f"{self.address}: {error}")
                await asyncio.sleep(pause * self._rng.uniform(0.5, 1.5))
                pause = min(pause * 2, RECONNECT_S[1])
                continue
            try:
                await self._watch(link, loop)
            finally:
                link.abort("the gateway closed the link")
            # One that says nothing, or what we cannot use, is asked less and less often.
            heard = self.load.generation > generation
            pause = RECONNECT_S[0] if heard else min(pause * 2, RECONNECT_S[1])
            await asyncio.sleep(pause)

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> Link:
        def make() -> Link:
            return Link(self._heard_status, self._link_lost, gateway=self._gateway)

        scheme, _, rest = self.address.partition(":")
        async with asyncio.timeout(2.0):
            if scheme == "unix":
                _, link = await loop.create_unix_connection(make, rest)
            else:
                host, _, port = rest.rpartition(":")
                _, link = await loop.create_connection(make, host.strip("[]"), int(port))
        return link

    async def _watch(self, link: Link, loop: asyncio.AbstractEventLoop) -> None:
        """Returns when the link is lost; a silent one is cut."""
        while not self._lost.is_set():
            try:
                async with asyncio.timeout(PING_S):
                    await self._lost.wait()
            except TimeoutError:
                if loop.time() - link.heard > SILENT_S:
                    link.abort(f"silent for {SILENT_S:.0f} s")
                    return
                link.ping()

    def _heard_status(self, link: Link, status: Status) -> None:
        if status.model != self.model:
            link.abort(f"serves model {status.model!r}, not {self.model!r}")
            return
        if self.expects not in (None, status.kind):
            link.abort(f"is of kind {status.kind!r}, the configuration says {self.expects!r}")
            return
        if self._link is None:
            # The first word on this link: leases of the last one no longer count.
            self._link = link
            now = asyncio.get_running_loop().time()
            self.load.renew(now)
            self.calls.renew(now)
        self.load.slots = self.calls.slots = status.slots
        if status.signature is not None:
            self.signature = Signature.from_json(status.signature)
        changed = (status.state, status.version, status.reload) != (
            self.status.state,
            self.status.version,
            self.status.reload,
        )
        self.status = status
        if changed:
            log.info(
                "replica=%s state=%s version=%s reload=%s reason=%s",
                *(self.name, status.state, status.version, status.reload, status.reason),
            )
        self.met.set()
        self._on_change()

    def _link_lost(self, link: Link, why: str) -> None:
        self._lost.set()
        if self._link is link or self._link is None:
            self._link = None
            self._set_unreachable(why)

    def _set_unreachable(self, why: str) -> None:
        if self.status.state != "unreachable":
            log.warning("replica=%s state=unreachable reason=%s", self.name, why)
        old = self.status
        # What it served last stays to be seen; nothing is routed by it.
        self.status = Status(
            model=old.model,
            kind=old.kind,
            state="unreachable",
            reason=why,
            version=old.version,
            surfaces=old.surfaces,
        )
        self.met.set()
        self._on_change()
