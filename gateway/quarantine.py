"""Requests that were on board when a replica died: which of them did it is found out one by one.

Owns the suspects that wait, the replica that is set apart for them, and those that hold one. A
suspect is sent alone, to a replica that has nothing else: what dies with it then, and dies again,
has died of it.
Reads no clock and sends nothing. Invariant: a replica that holds a suspect holds nothing else of
this worker's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Generic, Protocol, TypeVar

from gateway.policy.load import ReplicaLoad


class Loaded(Protocol):
    """A replica, as far as it matters here."""

    load: ReplicaLoad


R = TypeVar("R", bound=Loaded)
Q = TypeVar("Q")


class Quarantine(Generic[R, Q]):
    """Of replicas R, and of requests Q, which are told apart by what they are, not by equality."""

    def __init__(self) -> None:
        self._waiting: dict[Q, None] = {}  # oldest first
        self._held: dict[R, Q] = {}
        self._ward: R | None = None  # takes nothing but suspects
        self._marks = count(1).__next__

    def __bool__(self) -> bool:
        """Whether anything has to be asked here before a batch leaves."""
        return bool(self._waiting or self._held)

    @property
    def waiting(self) -> Sequence[Q]:
        """Oldest first."""
        return list(self._waiting)

    @property
    def ward(self) -> R | None:
        """The replica that is set apart."""
        return self._ward

    def held(self) -> Sequence[tuple[R, Q]]:
        """Suspects under way, and where."""
        return list(self._held.items())

    def mark(self) -> int:
        """What makes a suspect's key one that no other request has."""
        return self._marks()

    def wait(self, requests: Iterable[Q]) -> None:
        self._waiting.update(dict.fromkeys(requests))

    def forget(self, request: Q) -> None:
        """It has ended, or was sent."""
        self._waiting.pop(request, None)
        if not self._waiting:
            self._ward = None

    def assign(self, able: Sequence[R], runs: Callable[[R, Q], bool]) -> None:
        """Set a replica apart that can run the first suspect: the one that is empty soonest."""
        if not self._waiting:
            return
        first = next(iter(self._waiting))
        fit = [replica for replica in able if runs(replica, first)]
        if self._ward not in fit:
            self._ward = min(fit, key=lambda replica: replica.load.in_flight, default=None)

    def admits(self, replica: R) -> bool:
        """Whether anything may be sent to it now."""
        if replica in self._held:
            return False
        return replica is not self._ward or not replica.load.in_flight

    def only_suspects(self, replica: R) -> bool:
        """Of one that admits something: whether that is suspects only. Others get none."""
        return replica is self._ward

    def sent(self, request: Q, replica: R) -> None:
        self._held[replica] = request
        self.forget(request)

    def landed(self, replica: R) -> Q | None:
        """A flight of this replica's has ended; the suspect that it was, if it was one."""
        return self._held.pop(replica, None)
