"""Prefix affinity: a prompt goes where the start of it was processed before.

Owns a bounded memory of which replica has seen which prefix; it forgets the least recently used.
Knows nothing of tokens: prefixes are hashes over the prompt's bytes at fixed places. A guess, since
nobody tells what a replica has evicted; it is never worth more than its load bound.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from hashlib import blake2b

from gateway.policy.bounds import LoadBound
from gateway.policy.candidate import C, RoutingKey
from gateway.policy.leastwork import WeightedLeastConnections
from gateway.policy.load import Lease
from gateway.policy.rendezvous import SessionRouter


def _boundaries() -> tuple[int, ...]:
    """Every 256 bytes up to 2 KiB, then in steps of a quarter up to 4 MiB: a shared prefix is
    found to within a fifth of its length, and no prompt has more than 44 blocks."""
    places = list(range(256, 2049, 256))
    while places[-1] < 4 << 20:
        places.append((places[-1] * 5 // 4) // 256 * 256)
    return tuple(places)


BOUNDARIES = _boundaries()
# Where the prompt begins, in bodies of each form: what comes before it may differ from call to
# call though the prompt is the same.
_PROMPTS = (b'"messages"', b'"prompt"', b'"input"', b'"text_input"')
_COLD = 4  # blocks whose hash places a prompt that nobody has seen: its first KiB
_NOBODY = (0, -1)  # number and generation of a replica that nothing was sent to
_HOLDERS = 4  # replicas remembered per prefix; a hotter one is everywhere anyhow


def prompt_of(body: bytes) -> memoryview:
    """A JSON body from its prompt on, as far as a search can tell."""
    starts = [at for name in _PROMPTS if (at := body.find(name)) >= 0]
    return memoryview(body)[min(starts, default=0) :]


def prefix_blocks(prompt: bytes | bytearray | memoryview) -> tuple[int, ...]:
    """For `RoutingKey.prefix`: one hash per boundary within the prompt, each over all before it."""
    view, state, start, blocks = memoryview(prompt), blake2b(digest_size=8), 0, []
    for end in BOUNDARIES:
        if end > len(view):
            break
        state.update(view[start:end])
        blocks.append(int.from_bytes(state.digest(), "little"))
        start = end
    return tuple(blocks)


def _length(blocks: int) -> int:
    """Bytes that so many blocks cover; those past the last boundary add nothing."""
    return BOUNDARIES[min(blocks, len(BOUNDARIES)) - 1]


class PrefixIndex:
    """At most `capacity` blocks, each with the holders (replicas' numbers) of it, newest first.

    A block is never younger than one before it in the same prompt, so what is known of a prompt is
    a run of blocks from its start, and its end is found by bisection.
    """

    def __init__(self, capacity: int = 16384) -> None:
        if capacity < len(BOUNDARIES):
            raise ValueError(f"capacity must be at least {len(BOUNDARIES)} blocks")
        self._capacity = capacity
        self._holders: dict[int, tuple[int, ...]] = {}

    def __len__(self) -> int:
        return len(self._holders)

    def match(self, prefix: Sequence[int]) -> tuple[int, tuple[int, ...]]:
        """How many blocks are known, and who holds all of them."""
        low, high = 0, len(prefix)
        if high and prefix[-1] in self._holders:  # a prompt sent again, or a session's next turn
            low = high
        while low < high:
            middle = (low + high + 1) // 2
            if prefix[middle - 1] in self._holders:
                low = middle
            else:
                high = middle - 1
        return low, self._holders[prefix[low - 1]] if low else ()

    def depths(self, prefix: Sequence[int]) -> dict[int, int]:
        """How many blocks from the start each holder of any has, as far as is known."""
        depth, _ = self.match(prefix)
        found: dict[int, int] = {}
        for blocks in range(depth, 0, -1):
            for holder in self._holders[prefix[blocks - 1]]:
                found.setdefault(holder, blocks)
            if len(found) >= _HOLDERS:
                break
        return found

    def learn(self, prefix: Sequence[int], holder: int) -> None:
        holders = self._holders
        for block in reversed(prefix):  # the first block last: it is the youngest
            known = holders.pop(block, ())
            if not known or known[0] != holder:
                known = (holder, *(other for other in known if other != holder))[:_HOLDERS]
            holders[block] = known
        while len(holders) > self._capacity:
            del holders[next(iter(holders))]


class PrefixMemory:
    """Which replica was sent which prefixes, by names. One that has restarted holds nothing."""

    def __init__(self, capacity: int = 16384) -> None:
        self._index = PrefixIndex(capacity)
        self._numbers: dict[str, tuple[int, int]] = {}  # by name: holder's number, generation
        self._names: dict[int, str] = {}  # by number
        self._last_number = 0

    def __len__(self) -> int:
        return len(self._index)

    def match(self, prefix: Sequence[int]) -> tuple[int, list[str]]:
        """How many blocks are known, and the replicas that hold all of them."""
        depth, holders = self._index.match(prefix)
        return depth, [self._names[number] for number in holders if number in self._names]

    def held(self, prefix: Sequence[int]) -> dict[str, int]:
        """The bytes from the prompt's start that each replica should hold; others hold none."""
        names = self._names
        depths = self._index.depths(prefix).items()
        return {names[number]: _length(blocks) for number, blocks in depths if number in names}

    def sent(self, prefix: Sequence[int], lease: Lease) -> None:
        if prefix:
            number, generation = self._numbers.get(lease.replica, _NOBODY)
            if generation != lease.generation:  # new, or restarted: it holds nothing yet
                number = self._enlist(lease, number)
            self._index.learn(prefix[: len(BOUNDARIES)], number)

    def forget(self, replica: str) -> None:
        """It has restarted, and its generation does not say so."""
        number, _ = self._numbers.pop(replica, _NOBODY)
        self._names.pop(number, None)

    def _enlist(self, lease: Lease, former: int) -> int:
        if len(self._numbers) >= 1024:  # names come from the configuration; renamed ones go here
            self._numbers.clear()
            self._names.clear()
        self._names.pop(former, None)
        self._last_number += 1
        self._numbers[lease.replica] = self._last_number, lease.generation
        self._names[self._last_number] = lease.replica
        return self._last_number


class PrefixRouter:
    """A session named by the client is kept as `SessionRouter` does. Else the replicas that hold at
    least half of the prompt, the least loaded within its bound; else, so that workers that share
    nothing agree, the session router again, for the prompt's first KiB in place of a session.
    """

    def __init__(
        self,
        rng: random.Random | None = None,
        *,
        capacity: int = 16384,
        bound: LoadBound | None = None,
        enough: float = 0.5,
    ) -> None:
        self._bound, self._enough = bound or LoadBound(), enough
        self._sessions = SessionRouter(rng, self._bound)
        self._least_work = WeightedLeastConnections(rng)
        self._memory = PrefixMemory(capacity)

    def choose(
        self, candidates: Sequence[C], request: RoutingKey, now: float, *, cost: float = 1.0
    ) -> C | None:
        prefix = request.prefix
        if request.session is not None or not prefix:
            return self._sessions.choose(candidates, request, now, cost=cost)
        limits = self._bound.limits(candidates, now, cost)
        if limits is None:
            return None
        depth, wanted = self._memory.match(prefix)
        if depth and _length(depth) >= self._enough * _length(len(prefix)):
            able = [c for c in candidates if c.name in wanted and limits.admit(c)]
            if able:
                return self._least_work.choose(able, request, now, cost=cost)
        start = f"{prefix[min(_COLD, len(prefix)) - 1]:x}"
        return self._sessions.place(start, candidates, limits, now)

    def sent(self, lease: Lease, request: RoutingKey, now: float) -> None:
        self._memory.sent(request.prefix, lease)

    def ended(self, lease: Lease, request: RoutingKey, now: float, *, ok: bool) -> None:
        """What was sent was learnt then; a failure says little of what is kept."""

    def forget(self, replica: str) -> None:
        """It holds nothing any more."""
        self._memory.forget(replica)
