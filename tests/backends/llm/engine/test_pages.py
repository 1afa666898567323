"""Pages: nothing is lost, given twice or evicted while it is held."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from backends.llm.engine.pages import OutOfPages, Pages, Unsound

TOTAL = 7


class PagesMachine(RuleBasedStateMachine):
    """Holders take, share and give back; names are dropped. The model is a list of holds."""

    def __init__(self) -> None:
        super().__init__()
        self.pages = Pages(TOTAL)
        self.holds: list[list[int]] = []
        self.names: dict[bytes, int] = {}
        self.count = 0

    @rule(count=st.integers(0, TOTAL + 1))
    def take(self, count: int) -> None:
        available = self.pages.available
        if count > available:
            with pytest.raises(OutOfPages):
                self.pages.take(count)
            return
        held = {page for hold in self.holds for page in hold}
        taken = self.pages.take(count)
        assert len(set(taken)) == count and not held & {*taken, 0}
        self.holds.append(taken)

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        hold = data.draw(st.sampled_from(self.holds))
        self.pages.share(hold)
        self.holds.append(list(hold))

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.holds) - 1))
        self.pages.release(reversed(self.holds.pop(index)))

    @precondition(lambda self: any(self.holds))
    @rule(data=st.data(), tag=st.sampled_from("ab"))
    def name(self, data: st.DataObject, tag: str) -> None:
        page = data.draw(st.sampled_from([page for hold in self.holds for page in hold]))
        self.count += 1
        name = b"%d" % self.count
        self.pages.name(page, name, tag)
        if self.pages.find(name) is not None:
            self.names[name] = page

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def find(self, data: st.DataObject) -> None:
        """A name finds its page for as long as nobody was given it."""
        name = data.draw(st.sampled_from(sorted(self.names)))
        page = self.pages.find(name)
        assert page in (None, self.names[name])
        if page is not None:
            self.pages.share([page])
            self.holds.append([page])

    @rule(tag=st.sampled_from(["a", "b", None]))
    def forget(self, tag: str | None) -> None:
        self.pages.forget(tag)
        if tag is None:
            assert not any(self.pages.find(name) for name in self.names)

    @invariant()
    def sound(self) -> None:
        holders = [page for hold in self.holds for page in hold]
        self.pages.check(holders)
        counts = self.pages.counts
        assert sum(counts) == TOTAL and counts.held == len(Counter(holders))


PagesMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPages = PagesMachine.TestCase


def test_the_least_recently_used_is_evicted_first_and_the_end_of_a_sequence_before_its_start() -> (
    None
):
    pages = Pages(4)
    first, second = pages.take(2), pages.take(2)
    for number, page in enumerate((*first, *second)):
        pages.name(page, b"%d" % number, "v")
    pages.release(reversed(first))
    pages.release(reversed(second))
    assert pages.counts == (0, 4, 0)
    assert pages.take(1) == [first[1]]
    pages.share([first[0]])  # used again: now the youngest
    pages.release([first[0]])
    assert pages.take(2) == [second[1], second[0]]
    assert pages.find(b"0") == first[0] and pages.find(b"1") is None


def test_what_is_not_trusted_is_found_no_more() -> None:
    pages = Pages(2)
    held = pages.take(2)
    pages.name(held[0], b"x", "v")
    pages.unname(held)
    pages.release(held)
    assert pages.find(b"x") is None and pages.counts == (2, 0, 0)


def test_a_lost_page_is_noticed() -> None:
    pages = Pages(3)
    held = pages.take(2)
    with pytest.raises(Unsound, match="held otherwise"):
        pages.check(held[:1])
    pages.check(held)
