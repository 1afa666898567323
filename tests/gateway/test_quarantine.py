"""A request that kills its replica: its neighbours are answered, and it kills no fourth one."""

from __future__ import annotations

import asyncio
import random
import struct

import pytest

from gateway.errors import GatewayError
from gateway.request import Answer
from tests.gateway.fakes import FakeReplica, until
from tests.gateway.test_model import doubled, serving

POISON = 666.0


class Keeper:
    """Lets replicas die of poison, and starts them again."""

    def __init__(self, fakes: list[FakeReplica]) -> None:
        self.deaths: list[list[float]] = []  # what was on board
        self._tasks: list[asyncio.Task[None]] = []
        for fake in fakes:
            fake.answer = lambda frame, fake=fake: self._answer(fake, frame)

    def _answer(self, fake, frame):
        values = struct.unpack(f"<{len(frame.data) // 4}f", frame.data)[::2]
        if POISON not in values:
            return fake.double(frame)
        self.deaths.append(list(values))
        self._tasks.append(asyncio.get_running_loop().create_task(self._restart(fake)))
        return None

    async def _restart(self, fake):
        await fake.stop()
        await fake.start()


@pytest.mark.parametrize("count", [1, 2, 3])
async def test_poison_takes_nobody_with_it_and_is_tried_alone_twice(tmp_path, count):
    async with serving(tmp_path, count) as (client, fakes, _):
        keeper = Keeper(fakes)
        for number in [*range(20), int(POISON), *range(20, 40)]:
            client.ask(number)
        outcomes = await client.all(41)
        poison = outcomes.pop(int(POISON))
        assert isinstance(poison, GatewayError)
        assert (poison.status, poison.code) == (502, "poisonous_request")
        assert poison.should_retry is False
        assert [doubled(outcomes[n])[0] for n in range(40)] == [2.0 * n for n in range(40)]
        assert len(keeper.deaths) == 3
        assert keeper.deaths[1:] == [[POISON], [POISON]]
        client.balance()
        for replica in client.model.replicas:
            assert (replica.load.in_flight, replica.load.work) == (0, 0.0)


async def test_poison_harms_nobody_who_comes_while_suspects_are_tried(tmp_path):
    async with serving(tmp_path, 2) as (client, fakes, _):
        keeper, rng = Keeper(fakes), random.Random(3)
        numbers = [n for n in range(400) if n != POISON]
        for at, number in enumerate(numbers):
            if at == 150:
                client.ask(int(POISON))
            client.ask(number)
            if rng.random() < 0.2:
                await asyncio.sleep(0.001)
        outcomes = dict(await client.all(len(numbers) + 1))
        assert outcomes.pop(int(POISON)).code == "poisonous_request"
        assert all(doubled(outcomes[n])[0] == 2.0 * n for n in numbers)
        assert len(keeper.deaths) == 3
        client.balance()


async def test_suspects_are_alone_at_their_replica_and_the_others_go_on(tmp_path):
    async with serving(tmp_path, 3) as (client, fakes, _):
        for fake in fakes:
            fake.held = []
        for number in range(8):
            client.ask(number)
        await until(lambda: sum(len(fake.executed) for fake in fakes) == 1)
        dead = next(fake for fake in fakes if fake.executed)
        alive = [fake for fake in fakes if fake is not dead]
        await dead.stop()
        await until(lambda: sum(len(fake.executed) for fake in alive) == 1)
        for number in range(100, 124):
            client.ask(number)
        await until(lambda: sum(len(fake.executed) for fake in alive) == 3)
        ward = next(fake for fake in alive if fake.executed[0]["rows"] == [1])
        (other,) = (fake for fake in alive if fake is not ward)
        # The other's two slots are full; the ward holds one suspect and nothing else.
        assert [meta["rows"] for meta in ward.executed] == [[1]]
        assert [len(meta["rows"]) for meta in other.executed] == [8, 8]
        for fake in alive:
            fake.release()
        outcomes = await client.all(32)
        assert all(isinstance(outcome, Answer) for outcome in outcomes.values())
        assert all(meta["rows"] == [1] for meta in ward.executed[:8])
        client.balance()


async def test_a_suspect_whose_client_leaves_frees_the_ward(tmp_path):
    async with serving(tmp_path, 2) as (client, fakes, _):
        for fake in fakes:
            fake.held = []
        requests = [client.ask(number) for number in range(4)]
        await until(lambda: sum(len(fake.executed) for fake in fakes) == 1)
        dead = next(fake for fake in fakes if fake.executed)
        (alive,) = (fake for fake in fakes if fake is not dead)
        await dead.stop()
        await until(lambda: alive.executed)
        for request in requests:
            request.gone()
        await until(lambda: alive.cancelled)
        alive.release()
        client.ask(9)
        assert doubled((await client.all(5))[9])[0] == 18.0
        assert not client.model._dispatcher._quarantine
        client.balance()
