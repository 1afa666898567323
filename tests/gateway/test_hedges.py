"""Second copies of slow batches: the first answer counts, the other is cancelled, all balances."""

from __future__ import annotations

import asyncio
import random

import pytest

from gateway.errors import GatewayError
from gateway.request import Answer
from tests.gateway.fakes import until
from tests.gateway.test_model import doubled, serving


async def warm(client, count=200):
    """Until it is known how long requests take."""
    for number in range(count):
        client.ask(10_000 + number)
        await client.all(number + 1)
    client.outcomes.clear()
    client.model.measures.hedged = 0  # some were slow by chance


def balanced(client):
    client.balance()
    for replica in client.model.replicas:
        assert (replica.load.in_flight, replica.load.work) == (0, 0.0)


async def hedged(client, fakes):
    """One request that is held at one replica, and its copy at the other."""
    for fake in fakes:
        fake.held = []
    client.ask(1)
    await until(lambda: all(fake.held for fake in fakes))
    assert client.model.measures.hedged == 1
    return fakes


async def test_a_slow_replica_is_helped_out(tmp_path):
    async with serving(tmp_path, 2, hedge=0.5) as (client, fakes, _):
        await warm(client)
        slow, quick = await hedged(client, fakes)
        quick.release()
        assert doubled((await client.all(1))[1])[0] == 2.0
        await until(lambda: slow.cancelled)
        # Until it answers, what it works on weighs on it.
        assert sum(r.load.in_flight for r in client.model.replicas) == 1
        slow.release()
        await until(lambda: not any(r.load.in_flight for r in client.model.replicas))
        balanced(client)
        answered = sum(client.model.measures.by_replica.values())
        assert answered == 201  # not what was done twice


@pytest.mark.parametrize("first_dies", [True, False])
async def test_when_one_dies_the_other_answers(tmp_path, first_dies):
    async with serving(tmp_path, 2, hedge=0.5) as (client, fakes, _):
        await warm(client)
        first, second = await hedged(client, fakes)
        dies, lives = (first, second) if first_dies else (second, first)
        await dies.stop()
        await asyncio.sleep(0.01)
        assert not client.outcomes
        lives.release()
        assert doubled((await client.all(1))[1])[0] == 2.0
        assert client.model.measures.retried == 0
        balanced(client)


async def test_when_both_die_it_is_tried_again(tmp_path):
    async with serving(tmp_path, 2, hedge=0.5) as (client, fakes, _):
        await warm(client)
        await hedged(client, fakes)
        for fake in fakes:
            await fake.stop()
            fake.held = None
        for fake in fakes:
            await fake.start()
        assert doubled((await client.all(1))[1])[0] == 2.0
        balanced(client)


async def test_a_client_that_leaves_cancels_both(tmp_path):
    async with serving(tmp_path, 2, hedge=0.5) as (client, fakes, _):
        await warm(client)
        for fake in fakes:
            fake.held = []
        request = client.ask(1)
        await until(lambda: all(fake.held for fake in fakes))
        request.gone()
        await until(lambda: all(fake.cancelled for fake in fakes))
        for fake in fakes:
            fake.release()
        await until(lambda: not any(r.load.in_flight for r in client.model.replicas))
        balanced(client)


async def test_there_are_no_copies_while_others_wait_or_where_none_are_wanted(tmp_path):
    for more in ({"hedge": 0.5}, {}):
        folder = tmp_path / str(len(more))
        folder.mkdir()
        async with serving(folder, 2, **more) as (client, fakes, _):
            await warm(client, 100)
            for fake in fakes:
                fake.held = []
            for number in range(60 if more else 1):
                client.ask(number)
            await until(lambda fakes=fakes: any(fake.held for fake in fakes))
            await asyncio.sleep(0.05)
            assert client.model.measures.hedged == 0
            for fake in fakes:
                fake.release()
            await client.all(60 if more else 1)


async def test_copies_stay_within_their_share(tmp_path):
    async with serving(tmp_path, 2, hedge=0.05) as (client, fakes, _):
        await warm(client, 100)
        for number in range(100):
            slow = fakes[0]
            slow.held = []
            client.ask(number)
            await asyncio.sleep(0.002)
            slow.release()
            slow.held = None
            await client.all(number + 1)
        assert client.model.measures.hedged <= 0.05 * 200 + 1
        balanced(client)


async def test_any_course_with_copies_ends_every_request_once(tmp_path):
    rng = random.Random(11)
    async with serving(tmp_path, 3, hedge=0.5, retries=8) as (client, fakes, _):
        await warm(client, 60)
        requests = []
        for number in range(300):
            victim = rng.choice(fakes)
            chance = rng.random()
            if chance < 0.2 and victim.held is None:
                victim.held = []
            elif chance < 0.5 and victim.held is not None:
                victim.release()
            elif chance < 0.53:
                await until(lambda: all(r.ready for r in client.model.replicas))
                await victim.stop()
                victim.held = None
                await victim.start()
            requests.append(client.ask(number))
            if rng.random() < 0.1:
                rng.choice(requests).gone()
            if rng.random() < 0.3:
                await asyncio.sleep(0.002)
        for fake in fakes:
            if fake.held is not None:
                fake.release()
        outcomes = await client.all(300)
        for number, outcome in outcomes.items():
            if isinstance(outcome, Answer):
                assert doubled(outcome)[0] == 2.0 * number
            else:
                assert isinstance(outcome, GatewayError)
                assert outcome.code in ("client_closed_request", "poisonous_request")
        await until(lambda: not any(r.load.in_flight for r in client.model.replicas))
        balanced(client)
