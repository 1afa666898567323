"""What a replica is, as gateways hear it: its state and why, what it serves and what it follows.

Owns the reasons not to serve and the versions that are live, whatever the replica serves; it makes
none of them happen. Lives on the event loop's thread and loads no torch. Invariant: requests are
taken exactly while the state is ready.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from backends.config import ReplicaConfig
from backends.errors import Conflict, NotReady
from backends.events import Events
from backends.reload import REMEMBERED
from backends.wire import Status

if TYPE_CHECKING:
    from backends.follower import Follower, Loaded
    from backends.subscription import Subscription

V = TypeVar("V", bound="Loaded")


class Standing(Generic[V]):
    """`changed` is called when gateways should hear of it anew.

    `busy_s`: for how long the device has been at what it does; `work` names that, with its article,
    and `measure` the field of events that tells its seconds. `amiss`: what to say though it serves.
    """

    def __init__(
        self,
        config: ReplicaConfig,
        events: Events,
        changed: Callable[[], None],
        *,
        busy_s: Callable[[], float],
        work: str,
        measure: str,
        amiss: Callable[[], str] = lambda: "",
    ) -> None:
        self._config, self._events, self._changed = config, events, changed
        self._busy_s, self._work, self._measure, self._amiss = busy_s, work, measure, amiss
        self._failed = self._draining = ""
        self._hung = False
        self.starting = "importing torch"
        self.subscription: Subscription[V] | None = None
        self._barred: dict[str, str] = {}
        self.serving: V | None = None
        # Those that can be pinned now, by name.
        self.versions: dict[str, V] = {}

    # ------------------------------------------------------------------------------ what it says

    @property
    def follower(self) -> Follower[V] | None:
        return self.subscription.follower if self.subscription is not None else None

    def state(self) -> tuple[str, str]:
        """It, and why."""
        if self._failed:
            return "failed", self._failed
        if self._draining:
            return "draining", self._draining
        if self._hung:
            return "failed", f"{self._work} on the device has run for {self._busy_s():.0f} s"
        subscription = self.subscription
        reason = subscription.problem if subscription is not None else ""
        if self.serving is not None:
            return "ready", reason or self._amiss()
        if subscription is not None:
            return ("failed" if subscription.follower.stuck else "loading"), reason
        return "loading", self.starting

    def ready(self) -> V:
        """What serves. Raises NotReady."""
        serving = self.serving
        if serving is None or self._draining or self._failed or self._hung:
            state, reason = self.state()
            raise NotReady(f"the replica is {state}: {reason}")
        return serving

    def status(
        self,
        *,
        slots: int,
        load: dict[str, float],
        signature: dict[str, Any] | None = None,
        surfaces: tuple[str, ...] = (),
    ) -> Status:
        state, reason = self.state()
        serving, follower = self.serving, self.follower
        goal = follower.goal if follower else None
        return Status(
            model=self._config.model,
            kind=self._config.kind,
            state=state,
            reason=reason,
            version=serving.name if serving else "",
            versions=tuple(self.versions),
            generation=follower.generation if follower else 0,
            reload=str(follower.stage) if follower else "idle",
            reload_to=follower.loading_to if follower else "",
            goal=goal.version if goal else "",
            goal_generation=goal.generation if goal else 0,
            channel=follower.channel if follower else "",
            refused=follower.refused if follower else (),
            crowded=follower.crowded if follower else "",
            slots=slots,
            pid=os.getpid(),
            signature=signature,
            surfaces=surfaces,
            load=load,
        )

    # ------------------------------------------------------------------------- what becomes of it

    def bar(self, version: str, reason: str) -> None:
        """Never to be served, said before a channel is followed. Raises Conflict where none is."""
        if self._config.run is None:
            raise Conflict("this replica follows no channel")
        self._barred[version] = reason
        self._barred = dict([*self._barred.items()][-REMEMBERED:])

    def follow(self, subscription: Subscription[V]) -> None:
        """From now on, with what was barred before."""
        self.subscription = subscription
        for version, reason in self._barred.items():
            subscription.follower.refuse(version, reason)
        subscription.start()

    def drain(self, reason: str) -> None:
        """Take no more; what was accepted is still answered."""
        self._draining = reason
        self._changed()

    def undrain(self) -> None:
        self._draining = ""
        self._changed()

    def fail(self, reason: str) -> None:
        """For good."""
        self._failed = reason
        self._events("failed", reason=reason)
        self._changed()

    def tick(self) -> None:
        """Look at the clocks: the end of a probation, a device that hangs."""
        if self.follower is not None:
            self.follower.tick()
        busy = self._busy_s()
        hung = busy > self._config.hang_s
        if hung != self._hung:
            self._hung = hung
            event = "device.hung" if hung else "device.back"
            self._events(event, **{self._measure: round(busy, 1)})
            self._changed()
