"""Waiting for busy upstreams: turns between tenants, priorities, bounds, and who is refused."""

from __future__ import annotations

import asyncio
import hashlib
import random
from contextlib import asynccontextmanager
from pathlib import Path

from gateway.admit import Admittance
from gateway.config import parse
from gateway.tenants import Tenants
from tests.gateway.relay.fakes import Upstream, relaying, until

KEYS = {name: f"the-key-of-{name}" for name in ("flood", "quiet", "boss")}
MODEL = '[[models]]\nname = "m"\n[[models.replicas]]\nname = "r"\naddress = "tcp:h:1"\n'


def tables() -> str:
    digests = {n: hashlib.sha256(key.encode()).hexdigest() for n, key in KEYS.items()}
    return "".join(
        f'[[keys]]\nname = "{n}"\nkey_sha256 = ["{d}"]\n' + "priority = 5\n" * (n == "boss")
        for n, d in digests.items()
    )


class Gate:
    """An upstream that answers when told to, and in what order it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.open = asyncio.Event()
        self.upstream = Upstream("u", self._answer)

    async def _answer(self, call):
        self.asked.append(call.target.lstrip("/"))
        await self.open.wait()
        await call.answer(b"ok")


@asynccontextmanager
async def crowded(model: str = "", keys: bool = True):
    """(relay, gate): one upstream that takes one request at a time, and keys."""
    gate = Gate()
    async with relaying(gate.upstream, replicas="slots = 1", model=model) as relay:
        tenants = Tenants(asyncio.get_running_loop().time)
        relay.pool._waiting._weight = tenants.weight
        config = parse(MODEL + (tables() if keys else ""), Path("/srv/serve.toml"), {})
        Admittance(tenants, relay.fleet.surface).apply(config, relay.lane)
        yield relay, gate
        gate.open.set()
        await until(lambda: relay.counters()["live"] == 0)


async def ask(relay, name, number, more=""):
    fields = (f"x-api-key: {KEYS[name]}\r\n" if name else "") + more
    return await relay.ask(f"/{name}-{number}", fields=fields, complete=False)


async def test_a_flood_does_not_keep_another_tenant_out():
    async with crowded() as (relay, gate):
        replies = [await ask(relay, "flood", n) for n in range(30)]
        replies += [await ask(relay, "quiet", n) for n in range(5)]
        await until(lambda: relay.counters()["live"] == 35)
        gate.open.set()
        await until(lambda: all(reply.complete for reply in replies))
        last = max(gate.asked.index(f"quiet-{n}") for n in range(5))
        assert last <= 1 + 2 * 5 + 1
        assert [a for a in gate.asked if "flood" in a] == [f"flood-{n}" for n in range(30)]


async def test_a_priority_is_what_the_key_allows():
    async with crowded() as (relay, gate):
        for n in range(4):
            await ask(relay, "boss", n)
        await ask(relay, "boss", "sooner", "x-priority: 50\r\n")
        for n in range(4):
            await ask(relay, "quiet", n)
        await ask(relay, "quiet", "sooner", "x-priority: 50\r\n")
        await until(lambda: relay.counters()["live"] == 10)
        gate.open.set()
        await until(lambda: len(gate.asked) == 10)
        boss = [a for a in gate.asked if "boss" in a]
        assert boss == ["boss-0", "boss-sooner", "boss-1", "boss-2", "boss-3"]
        assert [a for a in gate.asked if "quiet" in a][-1] == "quiet-sooner"


async def test_a_full_queue_refuses_the_tenant_that_has_most_in_it():
    async with crowded(model="max_queue = 6") as (relay, gate):
        flood = [await ask(relay, "flood", n) for n in range(10)]
        await until(lambda: relay.counters()["accepted"] == 10)
        quiet = [await ask(relay, "quiet", n) for n in range(3)]
        await until(lambda: relay.counters()["accepted"] == 13)
        gate.open.set()
        await until(lambda: all(r.complete for r in [*flood, *quiet]))
        assert [reply.status for reply in quiet] == [200] * 3
        statuses = [reply.status for reply in flood]
        assert statuses == [200] * 4 + [429] * 6
        assert flood[-1].header("x-should-retry") == "true"
        assert relay.pool.measures.codes["overloaded"] == 6


async def test_clients_that_leave_the_queue_leave_nothing_behind():
    rng = random.Random(2)
    async with crowded(keys=False) as (relay, gate):
        for n in range(40):
            await ask(relay, "", n)
            if rng.random() < 0.5:
                rng.choice(relay.clients).transport.abort()
            await asyncio.sleep(0)
        await until(lambda: relay.counters()["accepted"] >= 20)
        gate.open.set()
        await until(lambda: relay.counters()["live"] == 0)
        assert len(relay.pool._waiting) == 0


async def test_an_adaptive_limit_refuses_what_would_wait_and_balances():
    async with crowded(model="adaptive_limit = 1.0", keys=False) as (relay, gate):
        crowd = relay.pool.crowd
        replies = [await ask(relay, "", n) for n in range(40)]
        await until(lambda: relay.counters()["accepted"] == 40)
        assert crowd.in_flight == 32
        assert sum(reply.status == 429 for reply in replies) == 8
        relay.clients[0].transport.abort()
        relay.clients[5].transport.abort()
        await until(lambda: crowd.in_flight == 30)
        gate.open.set()
        await until(lambda: relay.counters()["live"] == 0)
        assert crowd.in_flight == 0
