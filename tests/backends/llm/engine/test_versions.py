"""New weights under live sequences: who keeps which, when they move, and when the old may go."""

from __future__ import annotations

import threading

import pytest

from backends.llm.engine import Engine
from backends.llm.engine.versions import Versions
from tests.backends.llm.fakes import Gated, HashNetwork, Listener, alone, at_rest, generation

AHEAD = pytest.mark.parametrize("ahead", [0, 1])


def test_what_serves_is_live_and_what_is_released_never_comes_back() -> None:
    versions = Versions("a")
    for change in (versions.serve, lambda v: versions.retire(v, 1.0)):
        with pytest.raises(ValueError, match="not live"):
            change("b")
    versions.add("b")
    with pytest.raises(ValueError, match="live already"):
        versions.add("b")
    with pytest.raises(ValueError, match="serves"):
        versions.retire("a", 1.0)
    with pytest.raises(ValueError, match="serves"):
        versions.release("a", lambda: None)
    versions.serve("b")
    versions.retire("a", 5.0)
    assert versions.due(4.9) == [] and versions.next_due == 5.0
    versions.release("a", lambda: None)
    assert not versions.takes("a") and versions.takes("b")
    with pytest.raises(ValueError, match="released"):
        versions.serve("a")
    assert versions.leaving(lambda version: False) == []
    assert versions.due(5.0) == ["a"] and versions.due(6.0) == []
    assert [version for version, _ in versions.leaving(lambda version: True)] == ["a"]
    assert versions.live == {"b"}


class Reloading:
    """An engine with a sequence that runs under "old", step by step."""

    def __init__(self, ahead: int) -> None:
        self.now = [0.0]
        self.listener = Listener()
        self.old, self.new = Gated(salt=1), HashNetwork(salt=2)
        self.engine = Engine(
            self.old,
            self.listener,
            pages=64,
            page_size=4,
            version="old",
            ahead=ahead,
            clock=lambda: self.now[0],
        )
        self.engine.start()
        self.engine.submit(generation("a", [1, 2, 3, 4, 5], 12))
        self.old.let(3)
        self.listener.wait_tokens("a", 2)

    def versions(self, key: str) -> list[str]:
        return [output.version for output in self.listener.outputs[key, 0]]


@AHEAD
def test_a_sequence_ends_under_the_version_that_it_began_with(ahead: int) -> None:
    reloading = Reloading(ahead)
    engine, listener = reloading.engine, reloading.listener
    released = threading.Event()
    engine.add("new", reloading.new)
    engine.serve("new")
    engine.retire("old", 100.0)
    engine.release("old", released.set)
    engine.submit(generation("b", [1, 2, 3, 4, 5], 12))
    reloading.old.let(100)
    listener.wait(2)
    assert released.wait(30)
    at_rest(engine)
    assert reloading.old.closed and not reloading.new.closed
    assert set(reloading.versions("a")) == {"old"} and set(reloading.versions("b")) == {"new"}
    for key, network in (("a", HashNetwork(salt=1)), ("b", HashNetwork(salt=2))):
        expected = alone(generation(key, [1, 2, 3, 4, 5], 12), network)
        assert listener.tokens[key, 0] == expected.tokens[key, 0]
    assert listener.finish["b", 0].cached == 0, "pages of other weights are not its own"
    with pytest.raises(ValueError, match="not live"):
        engine.serve("old")
    assert engine.close()


@AHEAD
def test_at_the_deadline_sequences_move_and_say_so(ahead: int) -> None:
    reloading = Reloading(ahead)
    engine, listener = reloading.engine, reloading.listener
    released = threading.Event()
    engine.add("new", reloading.new)
    engine.serve("new")
    engine.retire("old", 5.0)
    engine.release("old", released.set)
    reloading.now[0] = 5.0
    reloading.old.let(2)
    listener.wait(1)
    assert released.wait(30)
    at_rest(engine)
    versions = reloading.versions("a")
    moved = versions.index("new")
    assert set(versions[:moved]) == {"old"} and set(versions[moved:]) == {"new"}
    tokens = listener.tokens["a", 0]
    assert len(tokens) == 12 and listener.finish["a", 0].finish == "length"
    rest = generation("r", [1, 2, 3, 4, 5, *tokens[:moved]], 12 - moved)
    assert tokens[moved:] == alone(rest, HashNetwork(salt=2)).tokens["r", 0]
    assert engine.close()


def test_what_asked_for_a_version_by_name_runs_under_it_or_ends() -> None:
    reloading = Reloading(0)
    engine, listener = reloading.engine, reloading.listener
    engine.add("new", reloading.new)
    engine.submit(generation("pinned new", [7], 4, version="new"))
    engine.submit(generation("pinned old", [7], 40, version="old"))
    engine.submit(generation("unknown", [7], 4, version="none"))
    reloading.old.let(4)
    listener.wait(2)
    assert "version none is not live" in listener.finish["unknown", 0].error
    expected = alone(generation("e", [7], 4), HashNetwork(salt=2)).tokens["e", 0]
    assert listener.tokens["pinned new", 0] == expected
    engine.serve("new")
    engine.retire("old", 0.0)
    reloading.old.let(4)
    listener.wait(4)
    assert listener.finish["pinned old", 0].finish == "error"
    assert "old is not live here any more" in listener.finish["pinned old", 0].error
    assert listener.finish["a", 0].finish == "length"
    at_rest(engine)
    assert engine.close()


def test_a_network_of_another_structure_is_refused() -> None:
    reloading = Reloading(0)
    with pytest.raises(ValueError, match="vocabulary is 9, the engine's is 61"):
        reloading.engine.add("other", HashNetwork(vocabulary=9))
    with pytest.raises(ValueError, match="context"):
        reloading.engine.add("short", HashNetwork(max_context=8))
    reloading.old.let(100)
    reloading.listener.wait(1)
    assert reloading.engine.close()


@AHEAD
def test_weights_may_change_in_place(ahead: int) -> None:
    reloading = Reloading(ahead)
    engine, listener = reloading.engine, reloading.listener
    outcomes: list[BaseException | None] = []
    with pytest.raises(ValueError, match="live already"):
        engine.swap("old", lambda network: None)

    def bad(network: object) -> None:
        raise OSError("no such file")

    def good(network: object) -> None:
        assert network is reloading.old
        reloading.old.salt = 2

    engine.swap("bad", bad, outcomes.append)
    engine.swap("new", good, outcomes.append)
    reloading.old.let(100)
    listener.wait(1)
    at_rest(engine)
    assert [str(outcome) for outcome in outcomes] == ["no such file", "None"]
    versions = reloading.versions("a")
    moved = versions.index("new")
    assert set(versions[:moved]) == {"old"} and set(versions[moved:]) == {"new"}
    tokens = listener.tokens["a", 0]
    rest = generation("r", [1, 2, 3, 4, 5, *tokens[:moved]], 12 - moved)
    assert tokens[moved:] == alone(rest, HashNetwork(salt=2)).tokens["r", 0]
    engine.submit(generation("b", [1, 2, 3, 4, 5], 3))
    listener.wait(2)
    assert set(reloading.versions("b")) == {"new"}
    expected = alone(generation("b", [1, 2, 3, 4, 5], 3), HashNetwork(salt=2))
    assert listener.tokens["b", 0] == expected.tokens["b", 0]
    with pytest.raises(ValueError, match="not live"):
        engine.serve("old")
    assert engine.close()
