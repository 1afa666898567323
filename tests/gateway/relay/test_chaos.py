"""Everything at once: upstreams and clients that misbehave at random. What must hold afterwards:
each request ended once, counters balance, nothing is held (`relaying` looks at the end)."""

from __future__ import annotations

import asyncio
import random

import pytest
import uvloop

from tests.gateway.relay.fakes import Upstream, relaying


def misbehaving(rng: random.Random):
    async def answer(call):
        await call.answer(b"x" * rng.choice([0, 10, 200_000]))

    async def stream(call):
        await call.start(rng.choice(["", "content-type: text/event-stream\r\n"]))
        for _ in range(rng.randrange(6)):
            await call.chunk(b"data: y\n\n")
            await asyncio.sleep(0)
        await call.end()

    async def cut(call):
        await call.start(rng.choice(["", "content-type: text/event-stream\r\n"]))
        await call.chunk(b"data: half")
        call.die()

    async def short(call):
        await call.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nnot so much")
        call.die()

    async def stall(call):
        await call.reader.read(1)

    scripts = {
        answer: 10,
        stream: 6,
        cut: 1,
        short: 1,
        stall: 1,
        (lambda call: call.answer(b"", "500 Error")): 1,
        (lambda call: call.answer(b"", "503 Busy", "retry-after: 0\r\n")): 2,
        (lambda call: call.answer(b"", "429 Busy")): 1,
        (lambda call: call.send(b"nonsense\r\n\r\n")): 1,
    }

    async def script(call):
        await rng.choices(list(scripts), list(scripts.values()))[0](call)

    return script


async def course(seed: int) -> None:
    rng = random.Random(seed)
    upstreams = [Upstream(name, misbehaving(rng)) for name in "abc"]
    relay = 'api = "web"\nhead_ms = 150\nidle_ms = 150\nreplay = "20 KiB"'
    async with relaying(*upstreams, relay=relay, replicas="slots = 4") as gateway:
        statuses: list[int] = []

        async def client(number: int) -> None:
            for turn in range(12):
                method = rng.choice(["GET", "POST", "HEAD", "PUT"])
                body = b"b" * rng.choice([0, 10, 90_000]) if method in ("POST", "PUT") else None
                session = f"x-session-id: {rng.randrange(5)}\r\n" if rng.random() < 0.5 else ""
                target = f"/{number}/{turn}"
                options = {"method": method, "body": body, "fields": session}
                if rng.random() < 0.15:
                    connection = await gateway.connect()
                    await gateway.ask(target, **options, client=connection, complete=False)
                    await asyncio.sleep(rng.random() * 0.02)
                    connection.transport.abort()
                else:
                    statuses.append((await gateway.ask(target, **options)).status)

        async def killer() -> None:
            for _ in range(4):
                victim = rng.choice(upstreams)
                await asyncio.sleep(0.05)
                await victim.stop()
                await asyncio.sleep(0.05)
                await victim.start()

        await asyncio.gather(killer(), *map(client, range(16)))
        counters = gateway.counters()
        assert counters["accepted"] == 16 * 12 or counters["cancelled"]
        assert statuses.count(200) > len(statuses) / 2
        assert set(statuses) <= {0, 200, 429, 500, 502, 503, 504}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_whatever_happens_everything_is_given_back(seed, loop):
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(asyncio.wait_for(course(seed), 60))
