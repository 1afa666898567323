"""Calls of tenants: whose they are, what they use, and whose turn it is."""

from __future__ import annotations

import asyncio
import hashlib

import orjson
import websockets

from tests.gateway.fake_llm import FakeLLM, completion
from tests.gateway.fakes import until
from tests.gateway.generation.fakes import ASK, STREAM, serving


def key(name: str, more: str = "") -> str:
    digest = hashlib.sha256(f"key-of-{name}".encode()).hexdigest()
    return f'[[keys]]\nname = "{name}"\nkey_sha256 = ["{digest}"]\n{more}\n'


def bearer(name: str) -> str:
    return f"authorization: Bearer key-of-{name}\r\n"


async def answer(call):
    call.whole(completion("ok"), usage=(100, 20, 0))


async def test_a_call_is_its_keys_and_its_tokens_are_counted(tmp_path):
    fake = FakeLLM(tmp_path / "a", answer)
    keys = key("one", "priority = 3") + key("two", 'models = ["other"]')
    other = '[[models]]\nname="other"\n[[models.replicas]]\nname="o"\naddress="unix:/nowhere"\n'
    async with serving(tmp_path, fake, more=other + keys) as gateway:
        assert (await gateway.post(ASK)).status == 401
        reply = await gateway.post(ASK, fields=bearer("one") + "x-priority: 50\r\n")
        assert reply.status == 200
        assert (fake.calls[0].meta.tenant, fake.calls[0].meta.priority) == ("one", 3)
        tenant = gateway.tenants["one"]
        assert (tenant.tokens, tenant.live, tenant.admitted) == (120.0, 0, 1)
        reply = await gateway.post(ASK, fields=bearer("two"))
        assert reply.status == 403 and orjson.loads(reply.body)["error"]["param"] == "model"
        listed = await gateway.post(b"", "/v1/models", method="GET", fields=bearer("two"))
        assert orjson.loads(listed.body)["data"] == []


async def test_tokens_are_reserved_by_the_estimate_and_settled_by_the_answer(tmp_path):
    fake = FakeLLM(tmp_path / "a", answer)
    limits = "tokens_per_minute = 6000\nburst_s = 10"  # a bucket of 1000
    async with serving(tmp_path, fake, more=key("one", limits)) as gateway:
        long = ASK[:-1] + b',"max_tokens":5000,"pad":"' + b"x" * 3000 + b'"}'
        for _ in range(7):  # reserved about 1000 each, and 120 each in the end
            assert (await gateway.post(long, fields=bearer("one"))).status == 200
        while (reply := await gateway.post(long, fields=bearer("one"))).status == 200:
            pass
        assert reply.status == 429 and reply.header("retry-after")
        assert orjson.loads(reply.body)["error"]["code"] == "rate_limit_exceeded"


async def test_a_stream_that_is_cut_is_paid_as_far_as_it_came(tmp_path):
    async def script(call):
        for _ in range(10):
            call.delta("x")
        await call.cancelled.wait()
        call.piece(final=True)

    fake = FakeLLM(tmp_path / "a", script)
    async with serving(tmp_path, fake, more=key("one")) as gateway:
        client = await gateway.connect()
        reply = await gateway.post(STREAM, fields=bearer("one"), client=client, complete=False)
        await until(lambda: reply.body.count(b"data: ") == 10)
        client.transport.abort()
        tenant = gateway.tenants["one"]
        await until(lambda: not tenant.live)
        prompt = len(STREAM) / 4
        assert tenant.tokens == prompt + 10
        fake.script = lambda call: asyncio.sleep(0, call.fault(status=400, code="x", message="x"))
        await gateway.post(STREAM, fields=bearer("one"))
        assert tenant.tokens == prompt + 10  # what no replica answered costs nothing


async def test_tenants_that_wait_take_turns_by_what_they_cost(tmp_path):
    step = asyncio.Semaphore(0)

    async def script(call):
        await step.acquire()
        await answer(call)

    fake = FakeLLM(tmp_path / "a", script)
    fake.slots = 2
    keys = key("many") + key("few") + key("heavy", "weight = 2.0")
    async with serving(tmp_path, fake, more=keys) as gateway:
        replies = []
        for name, count in (("many", 12), ("few", 3), ("heavy", 6)):
            for _ in range(count):
                replies.append(await gateway.post(ASK, fields=bearer(name), complete=False))
                await until(lambda: gateway.counters()["live"] == len(replies))
        for _ in replies:
            step.release()
        await until(lambda: all(reply.complete for reply in replies))
        order = [call.meta.tenant for call in fake.calls]
        assert order[:2] == ["many", "many"]
        # Of the twelve after those that found a slot: three, three and six, give or take one.
        first = order[2:14]
        assert first.count("few") == 3 and first.count("heavy") >= 5, order


async def test_streams_on_a_socket_are_its_keys_too(tmp_path):
    async def script(call):
        call.piece(b'{"text":"a"}\n', type="application/json")
        call.piece(b'{"usage":{}}\n', final=True, usage=(10, 5, 0))

    fake = FakeLLM(tmp_path / "a", script)
    async with serving(tmp_path, fake, more=key("one")) as gateway:
        headers = {"authorization": "Bearer key-of-one"}
        url = f"ws://127.0.0.1:{gateway.port}/ws"
        async with websockets.connect(url, additional_headers=headers) as socket:
            ask = {"type": "generate", "id": "x", "model_name": "m", "prompt": "hello"}
            await socket.send(orjson.dumps(ask).decode())
            assert orjson.loads(await socket.recv())["text"] == "a"
            assert orjson.loads(await socket.recv())["type"] == "result"
        tenant = gateway.tenants["one"]
        assert fake.calls[0].meta.tenant == "one"
        await until(lambda: not tenant.live)
        assert tenant.tokens == 15.0
