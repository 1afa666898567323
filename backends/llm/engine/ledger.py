"""What the engine owes: every choice from its submission until its last output.

Owns the bound on what waits, and the keys that are taken. Safe from any thread. Invariant: a choice
is in it exactly as long as its `finish` is not set, and its generation as long as one choice is.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable

from backends.errors import Conflict, NotReady, Overloaded
from backends.llm.engine.sequence import Sequence


class Ledger:
    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._choices: dict[Hashable, list[Sequence]] = {}
        # Submitted, and not yet with the scheduler.
        self._entering: dict[Sequence, None] = {}
        self._closed = False
        self._lock = threading.Lock()

    def open(self, leader: Sequence, waiting: int) -> None:
        """Raises NotReady at the end, Conflict where its key is taken, and Overloaded where so many
        wait that no more may."""
        with self._lock:
            if self._closed:
                raise NotReady("the replica ends")
            if leader.key in self._choices:
                raise Conflict(f"a generation with the key {leader.key!r} is live")
            if len(self._entering) + waiting >= self._max_waiting:
                raise Overloaded(f"{self._max_waiting} generations wait already")
            self._choices[leader.key] = leader.group
            self._entering[leader] = None

    def enter(self, leader: Sequence) -> None:
        with self._lock:
            del self._entering[leader]

    def live(self, key: Hashable) -> list[Sequence]:
        """Its choices that have not ended."""
        with self._lock:
            return [choice for choice in self._choices.get(key, ()) if choice.finish is None]

    def settle(self, sequence: Sequence) -> None:
        """Its finish is set."""
        with self._lock:
            if all(choice.finish is not None for choice in self._choices[sequence.key]):
                del self._choices[sequence.key]

    def owed(self) -> list[Sequence]:
        """All that have entered; once it is closed, all."""
        with self._lock:
            return [
                choice
                for choices in self._choices.values()
                for choice in choices
                if choice.finish is None and (self._closed or choices[0] not in self._entering)
            ]

    def close(self) -> None:
        with self._lock:
            self._closed = True
