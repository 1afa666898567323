"""Tenants at one model: each gets its part, whoever floods; nothing is lost on any course."""

from __future__ import annotations

import asyncio
import random
import struct

from gateway.errors import GatewayError
from gateway.request import Answer
from tests.gateway.fakes import until
from tests.gateway.test_model import serving


def served(fake) -> list[int]:
    """The numbers of the requests in the order in which they were executed."""
    return fake.order


def note_order(fake):
    fake.order = []

    def answer(frame):
        values = struct.unpack(f"<{len(frame.data) // 4}f", frame.data)
        fake.order += [int(value) for value in values[::2]]
        return fake.double(frame)

    fake.answer = answer


async def test_a_flood_does_not_keep_another_tenant_out(tmp_path):
    async with serving(tmp_path) as (client, (fake,), _):
        note_order(fake)
        fake.held = []
        for number in range(400):
            client.ask(number, tenant="flood")
        await until(lambda: len(fake.executed) == 2)
        for number in range(1000, 1040):
            client.ask(number, tenant="quiet")
        fake.release()
        await client.all(440)
        last = max(served(fake).index(number) for number in range(1000, 1040))
        # Two batches are executing, two wait inside; then they take turns.
        assert last <= 16 + 16 + 2 * 40 + 8
        assert all(isinstance(outcome, Answer) for outcome in client.outcomes.values())
        client.balance()


async def test_the_flood_is_what_a_full_queue_refuses(tmp_path):
    async with serving(tmp_path, max_queue=100) as (client, (fake,), _):
        fake.held = []
        for number in range(300):
            client.ask(number, tenant="flood")
        await until(lambda: len(fake.executed) == 2)
        for number in range(1000, 1030):
            client.ask(number, tenant="quiet")
        assert client.model.status()["waiting"] <= 100 + 30
        fake.release()
        outcomes = await client.all(330)
        assert all(isinstance(outcomes[n], Answer) for n in range(1000, 1030))
        refused = [n for n, outcome in outcomes.items() if isinstance(outcome, GatewayError)]
        assert refused and {outcomes[n].code for n in refused} == {"overloaded"}
        client.balance()


async def test_without_tenants_nothing_waits_outside(tmp_path):
    async with serving(tmp_path) as (client, (fake,), _):
        fake.held = []
        for number in range(200):
            client.ask(number)
        await until(lambda: len(fake.executed) == 2)
        assert len(client.model._dispatcher.queue._outside) == 0
        fake.release()
        await client.all(200)


async def test_any_course_of_tenants_ends_every_request_once(tmp_path):
    rng = random.Random(5)
    async with serving(tmp_path, 2, max_queue=120, retries=8) as (client, fakes, _):
        live = []
        for number in range(900):
            tenant = rng.choice(["", "a", "b", "c"])
            more = {"priority": rng.choice([-1, 0, 2])}
            if rng.random() < 0.1:
                more["deadline"] = asyncio.get_running_loop().time() + rng.choice([0.001, 0.05])
            live.append(client.ask(number, tenant=tenant, **more))
            if rng.random() < 0.15:
                rng.choice(live).gone()
            if rng.random() < 0.05:
                await asyncio.sleep(0)
            if number % 200 == 150:
                await until(lambda: all(r.ready for r in client.model.replicas))
                victim = rng.choice(fakes)
                await victim.stop()
                await victim.start()
            if number % 300 == 299:
                client.model.reconfigure(client.model.config)
        await client.all(900)
        client.balance()
        assert not client.model._live and not len(client.model._dispatcher.queue)
        for replica in client.model.replicas:
            await until(lambda replica=replica: replica.load.in_flight == 0)


async def test_an_adaptive_limit_refuses_what_would_wait_and_balances(tmp_path):
    rng = random.Random(7)
    async with serving(tmp_path, adaptive_limit=2.0, retries=8) as (client, (fake,), _):
        crowd = client.model._crowd
        fake.held = []
        requests = [client.ask(number) for number in range(50)]
        assert crowd.in_flight == crowd.limit == 32
        refused = [o for o in client.outcomes.values() if isinstance(o, GatewayError)]
        assert {(o.status, o.code) for o in refused} == {(429, "overloaded")}
        assert len(refused) == 18
        for request in rng.sample(requests, 10):
            request.gone()
        await until(lambda: fake.executed)
        await fake.stop()
        fake.held = None
        await fake.start()
        await client.all(50)
        assert crowd.in_flight == 0
        client.ask(99)
        assert isinstance((await client.all(51))[99], Answer)
        client.balance()
