"""A request that kills http servers: who is refused for it, and who must not be."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from gateway.policy import deaths
from gateway.relay import inquest
from tests.gateway.relay.fakes import Upstream, relaying, until

POISON = b'{"model": "m", "prompt": "boom"}'
ANY = 'retries = 2\nrouting = "wlc"\n'


class Keeper:
    """Upstreams that die of poison as processes do, and are started again."""

    def __init__(self, count: int) -> None:
        self.upstreams = [Upstream(f"u{number}", self._script) for number in range(count)]
        self.deaths: list[tuple[str, int]] = []  # whose, and with how many on board
        self.go = asyncio.Event()
        self.go.set()
        self.board: dict[str, int] = {each.name: 0 for each in self.upstreams}
        self.most_beside_poison = 0
        self.restarts: list[asyncio.Task[None]] = []

    async def _script(self, call):
        name = call.upstream.name
        self.board[name] += 1
        try:
            if b"boom" in call.body or "boom" in call.target:
                await self.kill(call.upstream)
                return
            if b"stream" in call.body:
                await call.start()
                await call.chunk(b"data: 1\n\n")
            closing = call.writer.transport.is_closing
            await until(lambda: self.go.is_set() or closing())
            if closing():
                return
            if b"stream" in call.body:
                await call.end()
            else:
                await call.answer(name.encode())
        finally:
            self.board[name] -= 1

    async def kill(self, upstream):
        self.deaths.append((upstream.name, self.board[upstream.name]))
        await upstream.stop()
        self.restarts.append(asyncio.get_running_loop().create_task(self._restart(upstream)))

    async def _restart(self, upstream):
        """Once the gateway has seen that it is not there."""
        replica = next(r for r in self.pool.replicas if r.name == upstream.name)
        await until(lambda: replica.state == "unreachable")
        await upstream.start()


def asks(gateway, body, **more):
    return gateway.ask("/v1/completions", method="POST", body=body, **more)


@contextlib.asynccontextmanager
async def relayed(keeper, model=ANY, relay='api = "openai"'):
    async with relaying(*keeper.upstreams, model=model, relay=relay) as gateway:
        keeper.pool = gateway.pool
        try:
            yield gateway
        finally:
            await asyncio.gather(*keeper.restarts)


async def recovered(gateway):
    """All are there, past their slow start, and looked at."""
    replicas = gateway.pool.replicas
    await until(lambda: all(r.ready and not r.losses and r.death is None for r in replicas))
    for replica in replicas:
        replica.load.started -= 100
        replica.load.refresh(gateway.pool.loop.time())


def code(reply):
    return json.loads(reply.body)["error"]["code"]


@pytest.mark.parametrize("count", [1, 2, 4])
async def test_what_kills_three_servers_is_refused_when_it_comes_again(count):
    keeper = Keeper(count)
    async with relayed(keeper) as gateway:
        for _ in range(6):
            reply = await asks(gateway, POISON)
            assert reply.status == 502 and reply.header("x-should-retry") == "false"
        assert len(keeper.deaths) == deaths.DEADLY
        assert code(reply) == "poisonous_request"
        assert b"have died of this request" in reply.body
        assert (await asks(gateway, b'{"model": "m"}')).status == 200
        await until(lambda: all(r.ready for r in gateway.pool.replicas))


async def test_with_few_retries_what_the_client_repeats_is_added_up():
    keeper = Keeper(3)
    async with relayed(keeper, "retries = 0\n") as gateway:
        codes = [code(await asks(gateway, POISON)) for _ in range(5)]
        assert codes == ["bad_replica"] * 3 + ["poisonous_request"] * 2
        assert len(keeper.deaths) == 3


async def test_an_application_s_get_is_found_out_and_its_other_pages_go_on():
    keeper = Keeper(2)
    async with relayed(keeper, relay='api = "web"') as gateway:
        for _ in range(3):
            assert (await gateway.ask("/boom?x=1")).status == 502
        assert len(keeper.deaths) == 3
        assert (await gateway.ask("/bo")).status == 200


async def test_neighbours_of_a_deadly_request_are_answered_and_not_refused():
    keeper = Keeper(3)
    async with relayed(keeper, "retries = 5\n") as gateway:
        keeper.go.clear()
        bodies = [b'{"model": "m", "prompt": "%d"}' % n for n in range(30)]
        asked = [asyncio.ensure_future(asks(gateway, body)) for body in bodies]
        await until(lambda: sum(keeper.board.values()) == 30)
        poison = asyncio.ensure_future(asks(gateway, POISON))
        await until(lambda: keeper.deaths)
        keeper.go.set()
        replies = await asyncio.gather(*asked)
        assert {reply.status for reply in replies} == {200}
        assert code(await poison) == "poisonous_request"
        assert keeper.deaths[0][1] > 1 and len(keeper.deaths) in (3, 4)
        assert [board for _, board in keeper.deaths[-2:]] == [1, 1]
        # Those that were on board and lived through it are not held against anybody.
        assert len(gateway.pool.inquest._record) == 1


async def test_streams_that_are_cut_are_counted_too():
    """They are not tried again by us; their clients do that."""

    async def dies_late(call):
        if b"boom" not in call.body:
            await call.answer(b"fine")
            return
        await call.start()
        await call.chunk(b"data: 1\n\n")
        await keeper.kill(call.upstream)

    keeper = Keeper(2)
    for upstream in keeper.upstreams:
        upstream.script = dies_late
    async with relayed(keeper) as gateway:
        for _ in range(3):
            reply = await asks(gateway, POISON)
            assert reply.status == 200 and b"bad_replica" in reply.body
            await recovered(gateway)
        assert code(await asks(gateway, POISON)) == "poisonous_request"
        assert len(keeper.deaths) == 3


async def test_kills_from_outside_convict_nobody():
    """Also when the one that a suspect has to itself is: whoever was on board is answered."""
    keeper = Keeper(3)
    async with relayed(keeper, "retries = 16\n") as gateway:
        keeper.go.clear()
        body = b'{"model": "m", "prompt": "long"}'
        same = [asyncio.ensure_future(asks(gateway, body)) for _ in range(12)]
        await until(lambda: sum(keeper.board.values()) == 12)
        for turn in range(3):
            victim = max(keeper.upstreams, key=lambda each: keeper.board[each.name])
            await keeper.kill(victim)
            await until(
                lambda turn=turn: len(keeper.restarts) == turn + 1 and keeper.restarts[-1].done()
            )
            await until(lambda: all(r.ready for r in gateway.pool.replicas))
            await until(lambda: sum(keeper.board.values()) >= 1)
        keeper.go.set()
        assert {reply.status for reply in await asyncio.gather(*same)} == {200}
        assert not gateway.pool.inquest.pending and not gateway.pool.inquest.guarded


async def test_a_connection_that_breaks_proves_nothing_while_its_server_is_there():
    async def resets(call):
        call.die()

    upstreams = [Upstream(name, resets) for name in "ab"]
    async with relaying(*upstreams, model=ANY, relay='api = "openai"') as gateway:
        for _ in range(6):
            reply = await asks(gateway, POISON)
            assert reply.status == 502 and code(reply) == "bad_replica"
        await until(lambda: not any(r.losses for r in gateway.pool.replicas))
        assert not gateway.pool.inquest.pending


async def test_a_suspect_has_a_server_to_itself_and_the_other_serves_everybody_else():
    keeper = Keeper(2)
    async with relayed(keeper, "retries = 0\n") as gateway:
        for _ in range(2):
            await asks(gateway, POISON)
            await recovered(gateway)
        keeper.go.clear()
        streams = [
            asyncio.ensure_future(asks(gateway, b'{"model":"m","n":%d}' % n)) for n in (1, 2)
        ]
        await until(lambda: sorted(keeper.board.values()) == [1, 1])
        poison = asyncio.ensure_future(asks(gateway, POISON))
        await until(lambda: gateway.pool.inquest.waiting == 1)
        more = [asyncio.ensure_future(asks(gateway, b'{"model":"m","n":%d}' % n)) for n in (3, 4)]
        await until(lambda: sorted(keeper.board.values()) == [1, 3])
        assert gateway.pool.status()["waiting"] == 1
        keeper.go.set()
        assert {r.status for r in await asyncio.gather(*streams, *more)} == {200}
        assert (await poison).status == 502 and keeper.deaths[-1][1] == 1


async def test_a_suspect_that_lives_on_is_let_in_with_the_others(monkeypatch):
    """A stream without an end must not keep a server to itself."""
    monkeypatch.setattr(inquest, "ALONE_S", 0.0)
    keeper = Keeper(1)
    async with relayed(keeper, "retries = 0\n") as gateway:
        keeper.go.clear()
        stream = b'{"model": "m", "prompt": "stream"}'
        for _ in range(2):
            cut = asyncio.ensure_future(asks(gateway, stream))
            await until(lambda: keeper.board["u0"] == 1)
            await keeper.kill(keeper.upstreams[0])
            await cut
            await recovered(gateway)
        suspect = asyncio.ensure_future(asks(gateway, stream))
        await until(lambda: keeper.board["u0"] == 1)
        other = asyncio.ensure_future(asks(gateway, b'{"model": "m"}'))
        await until(lambda: keeper.board["u0"] == 2)
        keeper.go.set()
        assert (await other).status == (await suspect).status == 200
        assert not gateway.pool.inquest.pending


async def test_a_suspect_whose_client_leaves_holds_nobody_up():
    keeper = Keeper(2)
    async with relayed(keeper, "retries = 0\n") as gateway:
        for _ in range(2):
            await asks(gateway, POISON)
            await recovered(gateway)
        keeper.go.clear()
        busy = [asyncio.ensure_future(asks(gateway, b'{"model":"m","n":%d}' % n)) for n in (1, 2)]
        await until(lambda: sorted(keeper.board.values()) == [1, 1])
        client = await gateway.connect()
        await asks(gateway, POISON, client=client, complete=False)
        await until(lambda: gateway.pool.inquest.waiting == 1)
        client.transport.abort()
        await until(lambda: not gateway.pool.inquest.guarded)
        keeper.go.set()
        assert {r.status for r in await asyncio.gather(*busy)} == {200}
        assert len(keeper.deaths) == 2


async def test_prompts_are_forgotten_of_a_server_that_comes_back():
    upstreams = [Upstream(name) for name in "ab"]
    async with relaying(*upstreams, model='routing = "prefix"', relay='api = "openai"') as gateway:
        body = b'{"model": "m", "prompt": "%b"}' % (b"x" * 2000)
        first = (await asks(gateway, body)).body
        memory = gateway.pool.router._memory
        (found,) = [each for each in upstreams if each.name.encode() == first]
        replica = next(r for r in gateway.pool.replicas if r.name == found.name)
        await found.stop()
        await until(lambda: replica.state == "unreachable")
        assert found.name in memory._names.values()
        await found.start()
        await until(lambda: replica.ready)
        assert found.name not in memory._names.values()


async def test_prompts_are_forgotten_when_the_supervisor_says_that_a_process_is_another_one():
    """It was back before anybody looked."""
    upstreams = [Upstream(name) for name in "ab"]
    async with relaying(*upstreams, model='routing = "prefix"', relay='api = "openai"') as gateway:
        body = b'{"model": "m", "prompt": "%b"}' % (b"x" * 2000)
        name = (await asks(gateway, body)).body.decode()
        memory = gateway.pool.router._memory
        assert name in memory._names.values()
        gateway.fleet.renewed(name)
        await until(lambda: name not in memory._names.values())
