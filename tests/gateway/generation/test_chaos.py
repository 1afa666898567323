"""Everything at once: replicas, clients and operators that misbehave at random. What must hold
afterwards: each call ended once, counters balance, nothing is held (`serving` looks at the end)."""

from __future__ import annotations

import asyncio
import random

import orjson
import pytest
import uvloop

from tests.gateway.fake_llm import FakeLLM, completion
from tests.gateway.fakes import until
from tests.gateway.generation.fakes import serving


def misbehaving(rng: random.Random):
    async def whole(call):
        call.whole(completion("x" * rng.choice([1, 100_000])))

    async def stream(call):
        for _ in range(rng.randrange(8)):
            call.delta("x")
            await asyncio.sleep(rng.choice([0, 0.001]))
        call.done()

    async def breaks(call):
        call.delta("x")
        call.fault(status=500, code="model_error", message="it broke")

    async def tells(call):
        call.delta("x")
        fault = {"status": 504, "code": "deadline_exceeded", "message": "late"}
        call.piece(b'data: {"error":{"message":"late"}}\n\n', final=True, fault=fault)

    async def dies(call):
        if rng.random() < 0.5:
            call.delta("x")
        call.replica.die()

    async def stalls(call):
        await call.cancelled.wait()
        call.piece(final=True)

    async def untyped(call):
        call._said = True
        call.piece(b"what", final=rng.random() < 0.5)

    async def garbage(call):
        call.connection.transport.write(b"nonsense" * 4)

    def refuses(status: int, retryable: bool):
        async def refuse(call):
            call.fault(status=status, code="no", message="no", retryable=retryable)

        return refuse

    scripts = {
        whole: 10,
        stream: 10,
        breaks: 1,
        tells: 1,
        dies: 1,
        stalls: 2,
        untyped: 1,
        garbage: 1,
        refuses(429, True): 2,
        refuses(500, True): 1,
        refuses(400, False): 2,
    }

    async def script(call):
        await rng.choices(list(scripts), list(scripts.values()))[0](call)

    return script


async def course(seed: int, folder) -> None:
    rng = random.Random(seed)
    fakes = [FakeLLM(folder / name, misbehaving(rng)) for name in "abc"]
    for fake in fakes:
        fake.slots = 3
    keys = 'kind = "llm"\nmax_queue = 6\n[models.generation]\nfirst_ms = 120\nidle_ms = 120\n'
    async with serving(folder, *fakes, model=keys) as gateway:
        statuses: list[int] = []

        async def client() -> None:
            for _ in range(10):
                streamed = rng.random() < 0.6
                content = "y" * rng.choice([5, 300, 30_000])
                body = {"model": "m", "messages": [{"content": content}], "stream": streamed}
                fields = f"x-priority: {rng.randrange(-2, 3)}\r\n"
                fields += rng.choice(["", "x-deadline-ms: 80\r\n", "x-model-version: 1-a\r\n"])
                connection = await gateway.connect()
                options = {"fields": fields, "client": connection}
                if rng.random() < 0.2:
                    await gateway.post(orjson.dumps(body), **options, complete=False)
                    await asyncio.sleep(rng.random() * 0.02)
                    connection.transport.abort()
                else:
                    reply = await gateway.post(orjson.dumps(body), **options)
                    assert reply.complete or reply.status == 200
                    statuses.append(reply.status)

        async def operator() -> None:
            for _ in range(8):
                name = rng.choice(["r0", "r1", "r2"])
                gateway.fleet.drain(name)
                await asyncio.sleep(0.02)
                gateway.fleet.undrain(name)
                rng.choice(fakes).say(load={"prompt_tokens": 900.0 * rng.random()})
                gateway.counters()

        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(client())
            group.create_task(operator())
        assert set(statuses) <= {200, 400, 429, 500, 502, 503, 504}
        assert statuses.count(200) > 10
        await until(lambda: gateway.counters()["live"] == 0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_whatever_happens_each_call_ends_once(seed, loop, tmp_path):
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if loop == "uvloop" else None) as runner:
        runner.run(course(seed, tmp_path))
