"""Two tracks of one model's replicas: those that try a version, and all the others.

Owns which replica is on which and which track a request waits for, while a canary is under way.
Invariant: there are two tracks only while both have a replica that serves; otherwise every replica
may serve every request, because an unproven version is better than none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from backends.wire import Status
from gateway.config_canary import CanaryConfig
from gateway.policy.split import Split

STABLE, CANARY = "stable", "canary"


class Replica(Protocol):
    name: str
    status: Status


class Tracks:
    def __init__(self, config: CanaryConfig) -> None:
        self.channel = config.channel
        self._split = Split(config.share, sessions=config.by == "session")
        self._canaries: frozenset[str] = frozenset()
        self._others: frozenset[str] = frozenset()

    @property
    def used(self) -> bool:
        return bool(self._canaries)

    def update(self, serving: Sequence[Replica]) -> None:
        """The replicas that can serve now. A canary stays one until all others have its version:
        while it is promoted, its sessions keep it."""
        proven = {r.status.version for r in serving if r.status.channel != self.channel}
        trying = frozenset(
            replica.name
            for replica in serving
            if replica.status.channel == self.channel and proven - {replica.status.version}
        )
        others = frozenset(replica.name for replica in serving) - trying
        self._canaries, self._others = (
            (trying, others) if self.channel and trying and others else (frozenset(), frozenset())
        )

    def place(self, session: str | None, version: str | None) -> str | None:
        """The track of a request that pins `version`; None: any."""
        if version is not None or not self._canaries:
            return None
        return CANARY if self._split.canary(session) else STABLE

    def stands(self, track: str | None, version: str | None) -> bool:
        """Whether a request may go on waiting on this track."""
        return version is not None or (track is not None) == self.used

    def members(self, track: str | None) -> frozenset[str] | None:
        """The replicas on a track; None: all."""
        if track is None:
            return None
        return self._canaries if track == CANARY else self._others

    def serves(self, replica: str, track: str | None) -> bool:
        members = self.members(track)
        return members is None or replica in members
