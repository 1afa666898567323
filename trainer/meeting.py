"""How the ranks of one attempt find each other in a store that remembers earlier ones.

Owns a name that all ranks of an attempt have and no attempt before it had. torchrun's agents count
restarts each for itself, so that one which joined later counts fewer: the number of restarts is no
such name. Invariant: a rank takes part under a name that answered its own fresh greeting, so what
dead processes left in the store leads nowhere.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Protocol

from trainer.errors import TrainerError

# Between two looks at the store; it lasts as long as starting a process takes.
LOOK_S = 0.01


class Store(Protocol):
    """What is used of torch's."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes: ...

    def check(self, keys: list[str]) -> bool: ...


class NobodyCame(TrainerError):
    """Ranks did not find each other in time."""

    code = "nobody_came"


def meet(
    store: Store,
    rank: int,
    ranks: int,
    patience: timedelta,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """The attempt's name, the same on every rank. Raises NobodyCame."""
    own, until = uuid.uuid4().hex, time.monotonic() + patience.total_seconds()
    place = f"meeting/{ranks}"
    if rank:
        store.set(f"{place}/greeting/{rank}", own)
        answer = f"{place}/answer/{own}"
        while not store.check([answer]):
            _wait(until, sleep, f"rank {rank} heard nothing from rank 0")
        name = store.get(answer).decode()
        store.set(f"{place}/{name}/{rank}", own)
        return name
    answered: set[str] = set()
    missing = set(range(1, ranks))
    while missing:
        for other in sorted(missing):
            greeting = f"{place}/greeting/{other}"
            if store.check([f"{place}/{own}/{other}"]):
                missing.discard(other)
            elif store.check([greeting]):
                theirs = store.get(greeting).decode()  # perhaps a dead one's; then it changes yet
                if theirs not in answered:
                    store.set(f"{place}/answer/{theirs}", own)
                    answered.add(theirs)
        if missing:
            _wait(until, sleep, f"rank 0 heard nothing from ranks {sorted(missing)}")
    return own


def _wait(until: float, sleep: Callable[[float], None], why: str) -> None:
    if time.monotonic() > until:
        raise NobodyCame(why)
    sleep(LOOK_S)
