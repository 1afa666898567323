"""Second attempts beside slow ones: one answer, for what may be done twice; all is given back."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.gateway.relay.fakes import Upstream, relaying, until


class Pair:
    """Two upstreams; while `slow` names one, it does not answer until it is let go."""

    def __init__(self) -> None:
        self.slow: set[str] = set()
        self.go = asyncio.Event()
        self.ups = [Upstream(name, self._script(name)) for name in ("a", "b")]
        self.fate: dict[str, str] = {}

    def _script(self, name):
        async def answer(call):
            if name in self.slow:
                await self.go.wait()
            fate = self.fate.get(name)
            if fate == "dies":
                call.die()
            elif fate == "fails":
                await call.answer(b"no", status="500 Oops")
            else:
                await call.answer(name.encode())

        return answer

    def calls(self):
        return sum(len(up.calls) for up in self.ups)


async def warm(relay, pair):
    for _ in range(60):
        assert (await relay.ask("/")).status == 200
    relay.pool.measures.hedged = 0
    return pair.calls()


async def asked_twice(relay, pair, **more):
    """A request that waits at both upstreams."""
    before = await warm(relay, pair)
    pair.slow = {"a", "b"}
    reply = await relay.ask("/", complete=False, **more)
    await until(lambda: pair.calls() == before + 2)
    assert relay.pool.measures.hedged == 1
    return reply


def hedging(pair, model="hedge = 0.5"):
    return relaying(*pair.ups, model=f'{model}\nrouting = "wlc"')


async def test_the_second_answers_and_the_first_is_cut_off():
    pair = Pair()
    async with hedging(pair) as relay:
        reply = await asked_twice(relay, pair)
        (transit,) = relay.pool._live
        other = next(up for up in pair.ups if up.name != transit.replica.name)
        await other.calls[-1].answer(other.name.encode())
        await until(lambda: reply.complete)
        assert (reply.status, reply.body) == (200, other.name.encode())
        assert reply.header("x-served-by") == other.name
        assert sum(r.load.in_flight for r in relay.pool.replicas) == 0
        pair.go.set()


@pytest.mark.parametrize("fate", ["dies", "fails"])
@pytest.mark.parametrize("who", ["first", "second"])
async def test_a_bad_attempt_leaves_it_to_the_other(fate, who):
    pair = Pair()
    async with hedging(pair) as relay:
        reply = await asked_twice(relay, pair)
        (transit,) = relay.pool._live
        bad = transit.replica.name if who == "first" else transit._arm.replica.name
        good = next(up.name for up in pair.ups if up.name != bad)
        call = next(up for up in pair.ups if up.name == bad).calls[-1]
        if fate == "dies":
            call.die()
        else:
            await call.answer(b"no", status="503 Busy")
        await until(lambda: transit._arm is None)
        assert not reply.complete
        await next(up for up in pair.ups if up.name == good).calls[-1].answer(good.encode())
        await until(lambda: reply.complete)
        assert (reply.status, reply.body) == (200, good.encode())
        pair.go.set()
        assert relay.counters()["done"] == 61


async def test_a_client_that_leaves_cuts_both_off():
    pair = Pair()
    async with hedging(pair) as relay:
        before = len(relay.clients)
        await asked_twice(relay, pair)
        relay.clients[-1].transport.abort()
        await until(lambda: relay.counters()["cancelled"] == 1)
        assert sum(r.load.in_flight for r in relay.pool.replicas) == 0
        assert len(relay.clients) > before
        pair.go.set()


@pytest.mark.parametrize(
    ("model", "more"),
    [("hedge = 0.5", {"method": "POST", "body": b"x"}), ("", {})],
)
async def test_what_must_not_be_done_twice_is_not(model, more):
    pair = Pair()
    async with hedging(pair, model) as relay:
        before = await warm(relay, pair)
        pair.slow = {"a", "b"}
        await relay.ask("/", complete=False, **more)
        await until(lambda: pair.calls() == before + 1)
        await asyncio.sleep(0.05)
        assert pair.calls() == before + 1 and relay.pool.measures.hedged == 0
        pair.go.set()
        await until(lambda: relay.counters()["live"] == 0)


@pytest.mark.parametrize(("path", "twice"), [("embeddings", True), ("chat/completions", False)])
async def test_of_models_only_what_generates_nothing_is_asked_for_twice(path, twice):
    pair = Pair()
    model = 'hedge = 0.5\nrouting = "wlc"'
    async with relaying(*pair.ups, relay="", model=model, routes="") as relay:
        asked = {"method": "POST", "body": b'{"model": "m"}', "fields": "idempotency-key: 1\r\n"}
        for _ in range(60):
            assert (await relay.ask(f"/v1/{path}", **asked)).status == 200
        relay.pool.measures.hedged, before = 0, pair.calls()
        pair.slow = {"a", "b"}
        reply = await relay.ask(f"/v1/{path}", complete=False, **asked)
        await until(lambda: pair.calls() == before + 1 + twice)
        await asyncio.sleep(0.02)
        assert relay.pool.measures.hedged == twice and pair.calls() == before + 1 + twice
        pair.go.set()
        await until(lambda: reply.complete)
        assert reply.status == 200


async def test_any_course_gives_everything_back():
    rng = random.Random(4)
    pair = Pair()
    async with hedging(pair) as relay:
        await warm(relay, pair)
        for _ in range(150):
            pair.slow = {name for name in "ab" if rng.random() < 0.3}
            pair.fate = {name: rng.choice(["dies", "fails", ""]) for name in "ab"}
            if rng.random() < 0.3:
                pair.fate = {}
            await relay.ask("/", complete=False)
            if rng.random() < 0.2:
                rng.choice(relay.clients).transport.abort()
            if rng.random() < 0.4:
                await asyncio.sleep(0.002)
            if rng.random() < 0.2:
                pair.go.set()
                await asyncio.sleep(0)
                pair.go.clear()
        pair.slow, pair.fate = set(), {}
        pair.go.set()
        await until(lambda: relay.counters()["live"] == 0)
        # `relaying` itself checks that leases and counters balance.
