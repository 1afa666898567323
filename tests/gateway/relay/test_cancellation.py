"""A client leaves at every point where the loop could hear of it, one after the other: before its
request was read, while a replica refuses it and another is sought, in its answer, and after it.
Whenever that is, the lease is given back once and the request has one end."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from tests.gateway.relay.fakes import Upstream, relaying, until

# More turns of the loop than the slowest of these requests takes.
MOST = 400


async def busy(call) -> None:
    await call.answer(b"", "503 Busy", "retry-after: 0\r\n")


async def streaming(call) -> None:
    await call.start()
    for _ in range(3):
        await call.chunk(b"data: y\n\n")
        await asyncio.sleep(0)
    await call.end()


async def leaving(body: bytes | None) -> None:
    """One request is let go on for a turn of the loop more than the one before it."""
    method = "GET" if body is None else "POST"
    scripts = {"a": busy, "b": streaming}
    async with relaying(*(Upstream(name, script) for name, script in scripts.items())) as gateway:
        for turns in range(MOST):
            client = await gateway.connect()
            await gateway.ask("/x", method=method, body=body, client=client, complete=False)
            for _ in range(turns):
                await asyncio.sleep(0)
            done = gateway.counters()["done"]
            client.transport.abort()
            await until(lambda: gateway.counters()["live"] == 0)
            counters = gateway.counters()
            ends = counters["done"] + counters["failed"] + counters["cancelled"]
            assert counters["accepted"] == ends
            for replica in gateway.pool.replicas:
                assert (replica.load.in_flight, replica.load.work) == (0, 0.0)
            if done > 20:
                break  # the last ones were over before their client left
        assert counters["cancelled"] > 3
        assert done > 20


@pytest.mark.parametrize("body", [None, b"b" * 100_000])
@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_lease_is_given_back_wherever_its_client_leaves(loop, body):
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(asyncio.wait_for(leaving(body), 60))
