"""Ranks find each other in a store that is full of what dead ranks left."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest

from trainer.meeting import NobodyCame, meet

PATIENCE = timedelta(seconds=30)


class Store:
    """torch's, as far as it is used."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}

    def set(self, key: str, value: str) -> None:
        self._values[key] = value

    def get(self, key: str) -> bytes:
        return self._values[key].encode()

    def check(self, keys: list[str]) -> bool:
        return all(key in self._values for key in keys)


def gather(store: Store, ranks: int, *, last: int) -> list[str]:
    """All ranks at once, but for `last`, which comes when the others wait already."""
    names: dict[int, str] = {}
    waiting = threading.Event()

    def come(rank: int) -> None:
        def sleep(seconds: float) -> None:
            waiting.set()
            threading.Event().wait(0.001)

        names[rank] = meet(store, rank, ranks, PATIENCE, sleep)

    threads = {rank: threading.Thread(target=come, args=(rank,)) for rank in range(ranks)}
    for rank, thread in threads.items():
        if rank != last:
            thread.start()
    if ranks > 1:
        assert waiting.wait(10)
    threads[last].start()
    for thread in threads.values():
        thread.join(30)
    return [names[rank] for rank in range(ranks)]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_all_ranks_of_an_attempt_have_its_name_and_no_other_has(ranks):
    store, seen = Store(), set()
    for attempt in range(3):
        names = gather(store, ranks, last=attempt % ranks)
        assert len(set(names)) == 1
        seen.add(names[0])
    assert len(seen) == 3


def test_a_rank_that_died_while_greeting_is_not_met():
    store = Store()
    with pytest.raises(NobodyCame, match="nothing from rank 0"):
        meet(store, 1, 2, timedelta(0))
    with pytest.raises(NobodyCame, match=r"nothing from ranks \[1\]"):
        meet(store, 0, 2, timedelta(0))
    first, second = gather(store, 2, last=1)
    assert first == second
