"""Prefix affinity: what is remembered, for how long, and when it gives way to load."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.load import ReplicaLoad
from gateway.policy.prefix import (
    BOUNDARIES,
    PrefixIndex,
    PrefixMemory,
    PrefixRouter,
    prefix_blocks,
)
from gateway.policy.routing import RoutingKey


def pool(count: int) -> list[ReplicaLoad]:
    return [ReplicaLoad(f"r{index}") for index in range(count)]


def prompt(*parts: tuple[str, int]) -> RoutingKey:
    """A prompt of so many bytes of each letter."""
    return RoutingKey(prefix=prefix_blocks("".join(c * n for c, n in parts).encode()))


def send(router: PrefixRouter, load: ReplicaLoad, key: RoutingKey, now: float = 0.0):
    lease = load.take(1.0, now)
    router.sent(lease, key, now)
    return lease


# -------------------------------------------------------------------------------------- the blocks


@given(st.binary(max_size=6000), st.binary(max_size=6000), st.binary(max_size=6000))
def test_blocks_agree_exactly_as_far_as_the_prompts_do(shared, a, b):
    one, two = prefix_blocks(shared + a), prefix_blocks(shared + b)
    common = len(shared)
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        common += 1
    for end, left, right in zip(BOUNDARIES, one, two, strict=False):
        assert (left == right) == (end <= common)


def test_the_number_of_blocks_is_bounded():
    assert prefix_blocks(b"x" * 255) == ()
    assert len(prefix_blocks(b"x" * 2048)) == 8
    assert len(prefix_blocks(bytes(9 << 20))) == len(BOUNDARIES) <= 44
    assert all(a < b <= max(a * 5 // 4, 2048) for a, b in pairwise(BOUNDARIES))
    assert prefix_blocks(memoryview(b"y" * 600)) == prefix_blocks(bytearray(b"y" * 700))


# --------------------------------------------------------------------------------------- the index


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.integers(1, 6)),
        max_size=60,
    ),
    st.integers(len(BOUNDARIES), 60),
)
def test_the_index_is_bounded_and_its_matches_are_true(sent, capacity):
    index, truth = PrefixIndex(capacity), {}
    for path, holder in sent:
        prefix = [hash(tuple(path[: n + 1])) for n in range(len(path))]
        index.learn(prefix, holder)
        for block in prefix:
            truth.setdefault(block, set()).add(holder)
        assert len(index) <= capacity
        depth, holders = index.match(prefix)
        assert depth == len(prefix) and holders[0] == holder
    for path, _ in sent:
        prefix = [hash(tuple(path[: n + 1])) for n in range(len(path))]
        depth, holders = index.match([*prefix, -7])
        assert depth <= len(prefix)
        assert set(holders) <= truth.get(prefix[depth - 1], set()) if depth else holders == ()


def test_the_least_recently_used_go_first():
    index = PrefixIndex(len(BOUNDARIES))
    index.learn([1, 2, 3], 1)
    for block in range(100, 100 + len(BOUNDARIES) - 3):
        index.learn([block], 2)
    index.learn([1, 2], 1)
    index.learn([999], 2)
    assert index.match([1, 2, 3])[0] == 2  # the end of the prompt, then the start


def test_a_capacity_below_one_prompt_is_refused():
    with pytest.raises(ValueError, match="capacity"):
        PrefixIndex(3)


# -------------------------------------------------------------------------------------- the router


def test_a_prompt_follows_the_start_that_it_shares():
    loads, router = pool(8), PrefixRouter(random.Random(1))
    elsewhere = loads[5]
    send(router, elsewhere, prompt(("s", 2048), ("a", 1024))).release(0.0)
    assert router.choose(loads, prompt(("s", 2048), ("b", 600)), 0.0) is elsewhere
    assert router.choose(loads, prompt(("s", 2048), ("a", 1024), ("c", 999)), 0.0) is elsewhere


def test_less_than_half_of_a_prompt_does_not_decide():
    loads, router = pool(8), PrefixRouter(random.Random(1))
    key = prompt(("s", 512), ("b", 8000))
    usual = router.choose(loads, key, 0.0)
    other = next(load for load in loads if load is not usual)
    send(router, other, prompt(("s", 512), ("a", 600))).release(0.0)
    assert router.choose(loads, key, 0.0) is usual


def test_workers_that_share_nothing_agree_on_new_prompts():
    loads = pool(8)
    keys = [prompt((chr(97 + n), 1024), ("q", 300 + n)) for n in range(20)]
    one = [PrefixRouter(random.Random(1)).choose(loads, key, 0.0) for key in keys]
    two = [PrefixRouter(random.Random(2)).choose(loads, key, 5.0) for key in keys]
    assert one == two and len({load.name for load in one}) > 3


def test_a_saturated_holder_is_left():
    loads, router = pool(4), PrefixRouter(random.Random(1))
    key = prompt(("s", 4096))
    held = [send(router, loads[0], key) for _ in range(20)]
    assert router.choose(loads, key, 0.0) is not loads[0]
    for lease in held:
        lease.release(1.0)
    assert router.choose(loads, key, 1.0) is loads[0]


def test_of_several_holders_the_less_loaded():
    loads, router = pool(4), PrefixRouter(random.Random(1))
    key = prompt(("s", 4096))
    first, _ = send(router, loads[2], key), send(router, loads[3], key).release(0.0)
    assert router.choose(loads, key, 0.0) is loads[3]
    first.release(0.0)
    loads[3].take(1.0, 0.0)
    assert router.choose(loads, key, 0.0) is loads[2]


def test_a_restarted_replica_holds_nothing():
    loads, router = pool(8), PrefixRouter(random.Random(1))
    key = prompt(("s", 4096))
    usual = router.choose(loads, key, 0.0)
    other = next(load for load in loads if load is not usual)
    send(router, other, key)
    assert router.choose(loads, key, 0.0) is other
    other.renew(1.0)
    send(router, other, prompt(("z", 4096)), 1.0).release(1.0)
    assert router.choose(loads, key, 1.0) is usual


def test_a_session_named_by_the_client_comes_first():
    loads, router = pool(8), PrefixRouter(random.Random(1))
    key = prompt(("s", 4096))
    named = key._replace(session="x")
    home = router.choose(loads, named, 0.0)
    send(router, next(load for load in loads if load is not home), key)
    assert router.choose(loads, named, 0.0) is home


# -------------------------------------------------------------------------------------- the memory


def test_a_memory_tells_how_much_of_a_prompt_each_replica_holds():
    memory, (a, b) = PrefixMemory(), pool(2)
    memory.sent(prompt(("s", 2048), ("a", 2048)).prefix, a.take(1.0, 0.0))
    memory.sent(prompt(("s", 2048), ("b", 512)).prefix, b.take(1.0, 0.0))
    held = memory.held(prompt(("s", 2048), ("a", 4096)).prefix)
    assert held == {"r0": max(x for x in BOUNDARIES if x <= 4096), "r1": 2048}
    assert memory.held(prompt(("x", 4096)).prefix) == {} == memory.held(())
    a.renew(1.0)
    memory.sent(prompt(("y", 512)).prefix, a.take(1.0, 1.0))
    assert "r0" not in memory.held(prompt(("s", 2048), ("a", 4096)).prefix)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 4)), max_size=40))
def test_what_a_memory_says_is_held_was_sent(sends):
    memory, loads = PrefixMemory(), pool(4)
    sent: dict[str, list[bytes]] = {}
    for replica, letter, blocks in sends:
        text = b"s" * 600 + bytes([97 + letter]) * (300 * blocks)
        memory.sent(prefix_blocks(text), loads[replica].take(1.0, 0.0))
        sent.setdefault(f"r{replica}", []).append(text)
        for name, size in memory.held(prefix_blocks(text + b"z" * 300)).items():
            assert any(other[:size] == text[:size] and len(other) >= size for other in sent[name])
