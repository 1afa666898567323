"""What is owed, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from backends.errors import Conflict, NotReady, Overloaded
from backends.llm.engine.ledger import Ledger
from backends.llm.engine.sequence import Sequence
from tests.backends.llm.fakes import generation


def leader(key: str, n: int = 1) -> Sequence:
    each = generation(key, [1], n=n)
    first, *others = (Sequence(each, c, np.ones(1, np.int32), 9, 0) for c in range(n))
    first.followers = others
    return first


def test_a_generation_is_owed_until_its_last_choice_has_ended() -> None:
    ledger, one = Ledger(9), leader("a", 2)
    ledger.open(one, 0)
    assert ledger.owed() == [], "it has not come to the scheduler yet"
    ledger.enter(one)
    first, second = ledger.owed()
    first.finish = "stop"
    ledger.settle(first)
    assert ledger.owed() == ledger.live("a") == [second]
    with pytest.raises(Conflict):
        ledger.open(leader("a"), 0)
    second.finish = "stop"
    ledger.settle(second)
    assert ledger.owed() == ledger.live("a") == ledger.live("nobody") == []
    ledger.open(leader("a"), 0)


def test_so_many_may_wait_and_none_after_the_end() -> None:
    ledger = Ledger(2)
    ledger.open(one := leader("a"), 0)
    with pytest.raises(Overloaded):
        ledger.open(leader("b"), 1)
    ledger.enter(one)
    ledger.open(leader("b"), 1)
    ledger.close()
    assert {sequence.key for sequence in ledger.owed()} == {"a", "b"}
    with pytest.raises(NotReady):
        ledger.open(leader("c"), 0)
