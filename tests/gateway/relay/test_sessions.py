"""Sessions through the relay: who stays where, by what, and what happens when that is gone."""

from __future__ import annotations

import orjson
import pytest

from gateway.config import ConfigError, parse
from tests.gateway.relay.fakes import Upstream, relaying, replica, until


def three():
    return [Upstream(name) for name in "abc"]


async def test_a_session_keeps_its_replica():
    async with relaying(*three()) as gateway:
        homes = {}
        for turn in range(3):
            for user in range(12):
                reply = await gateway.ask(f"/{turn}", fields=f"x-session-id: u{user}\r\n")
                homes.setdefault(user, set()).add(reply.body)
        assert all(len(home) == 1 for home in homes.values())
        assert len(set.union(*homes.values())) == 3


async def test_a_client_without_a_session_gets_a_cookie_and_stays_with_it():
    async with relaying(*three(), relay='api = "web"\ncookie = "gw"') as gateway:
        homes = set()
        for _ in range(8):
            first = await gateway.ask()
            cookie = first.header("set-cookie")
            assert cookie.startswith("gw=") and "HttpOnly" in cookie and "Path=/" in cookie
            homes.add(first.body)
            value = cookie.partition(";")[0]
            for turn in range(5):
                # The application's own cookies come and go beside it.
                again = await gateway.ask(fields=f"cookie: session={turn}; {value}\r\n")
                assert again.body == first.body and again.header("set-cookie") is None
        assert len(homes) > 1


async def test_a_session_moves_when_its_replica_dies_and_comes_home_again():
    upstreams = three()
    async with relaying(*upstreams) as gateway:
        ask = {"fields": "x-session-id: me\r\n"}
        home = (await gateway.ask(**ask)).body
        upstream = next(u for u in upstreams if u.name.encode() == home)
        await upstream.stop()
        away = [(await gateway.ask(**ask)).body for _ in range(4)]
        assert home not in away and len(set(away)) == 1
        await upstream.start()
        await until(lambda: all(replica.ready for replica in gateway.pool.replicas))
        for replica in gateway.pool.replicas:
            replica.load.started -= 100  # past its slow start
            replica.load.refresh(gateway.pool.loop.time())
        assert (await gateway.ask(**ask)).body == home


@pytest.mark.parametrize("strict, homes", [("true", 1), ("false", 2)])
async def test_a_crowded_session_spills_unless_it_must_not(strict, homes):
    served = set()

    async def hold(call):
        served.add(call.upstream.name)
        await until(lambda: len(calls()) == 24)
        await call.answer(b"x")

    upstreams = Upstream("a", hold), Upstream("b", hold)

    def calls():
        return [call for upstream in upstreams for call in upstream.calls]

    async with relaying(*upstreams, relay=f'api = "web"\nstrict = {strict}') as gateway:
        fields = "x-session-id: popular\r\n"
        replies = [await gateway.ask(fields=fields, complete=False) for _ in range(24)]
        await until(lambda: all(reply.complete for reply in replies))
        assert len(served) == homes


@pytest.mark.parametrize("size", [10, 40_000])
async def test_a_session_may_be_named_in_the_body(size):
    relay = 'api = "openai"\nsessions = ["body:prompt_cache_key"]'
    async with relaying(*three(), relay=relay) as gateway:
        homes = {}
        for turn in range(3):
            for key in range(9):
                text = "x" * size + str(turn)
                body = f'{{"messages":"{text}","model":"m","prompt_cache_key":"k{key}"}}'
                reply = await gateway.ask("/v1/chat/completions", method="POST", body=body.encode())
                homes.setdefault(key, set()).add(reply.body)
        assert all(len(home) == 1 for home in homes.values())
        assert len(set.union(*homes.values())) > 1


async def test_a_route_may_have_sources_of_its_own():
    routes = '[[routes]]\npath = "/"\nmodel = "m"\nsessions = ["query:room"]\n'
    async with relaying(*three(), routes=routes) as gateway:
        rooms = {}
        for turn in range(4):
            for room in range(9):
                reply = await gateway.ask(f"/{turn}?room={room}")
                rooms.setdefault(room, set()).add(reply.body)
        assert all(len(home) == 1 for home in rooms.values())


async def test_a_conversation_goes_where_its_beginning_was_sent():
    """vLLM and the like keep what they have computed of a prompt; no client says anything."""

    def chat(*said: str) -> bytes:
        messages = [{"role": "user", "content": text} for text in said]
        return orjson.dumps({"model": "m", "temperature": 0, "messages": messages})

    upstreams = three()
    async with relaying(
        *upstreams, relay='api = "openai"', model='routing = "prefix"', routes=""
    ) as gateway:

        async def ask(body: bytes) -> bytes:
            reply = await gateway.ask("/v1/chat/completions", method="POST", body=body)
            assert reply.status == 200
            return reply.body

        homes = set()
        for talk in range(12):
            said = [f"{talk} is the number of this talk. " * 40]
            home = await ask(chat(*said))
            homes.add(home)
            for turn in range(4):
                said.append(f"and then, in turn {turn}? " * 10)
                assert await ask(chat(*said)) == home
        assert homes == {b"a", b"b", b"c"}
        # A client that names its session is taken at its word, and short prompts go anywhere.
        named = orjson.dumps({"model": "m", "user": "u", "prompt": "x" * 3000})
        assert len({await ask(named) for _ in range(4)}) == 1
        assert len({await ask(orjson.dumps({"prompt": "hi"})) for _ in range(40)}) > 1
        # A prompt too long to be sent twice is passed on as it comes, and is found as well.
        long = orjson.dumps({"model": "m", "prompt": "y" * 600_000})
        assert len({await ask(long) for _ in range(4)}) == 1


def test_prefixes_are_of_prompts(tmp_path):
    text = '[[models]]\nname = "m"\nrouting = "prefix"\n[models.relay]\napi = "web"\n'
    with pytest.raises(ConfigError, match=r"http replicas with relay\.api = \"openai\""):
        parse(text + replica("a", 1), tmp_path / "serve.toml", {})
