"""One /v1 over native and relayed models: the body's model decides, and one list has them all."""

from __future__ import annotations

import contextlib

import openai
import orjson
import pytest

from tests.gateway.fake_llm import WORDS, FakeLLM
from tests.gateway.fakes import until
from tests.gateway.generation.fakes import ASK, STREAM, serving
from tests.gateway.relay.fakes import Upstream, replica


async def relayed(call):
    document = orjson.loads(call.body)
    choice = {"index": 0, "delta": {"content": document["model"]}}
    chunk = {"id": "u", "object": "chat.completion.chunk", "created": 1, "model": "x"}
    if not document.get("stream"):
        await call.answer(call.body, fields="content-type: application/json\r\n")
        return
    await call.start()
    await call.chunk(b"data: " + orjson.dumps({**chunk, "choices": [choice]}) + b"\n\n")
    await call.chunk(b"data: [DONE]\n\n")
    await call.end()


@contextlib.asynccontextmanager
async def both(tmp_path):
    upstream = Upstream("up", relayed)
    await upstream.start()
    more = '[[models]]\nname = "far"\n[models.relay]\nnames = ["org/Far"]\n'
    more += replica("up", upstream.port)
    fake = FakeLLM(tmp_path / "a")
    async with serving(tmp_path, fake, more=more) as gateway:
        await until(lambda: gateway.fleet.readiness()[0])
        yield gateway, fake, upstream
    await upstream.stop()


@pytest.mark.parametrize("size", [0, 300_000])
async def test_the_bodys_model_decides_and_bodies_stay_as_they_are(tmp_path, size):
    async with both(tmp_path) as (gateway, fake, upstream):
        padded = ASK[:-1] + b',"pad":"%b"}' % (b"x" * size)
        far = padded.replace(b'"m"', b'"org/Far"', 1)
        assert (await gateway.post(padded)).header("x-served-by") == "r0"
        reply = await gateway.post(far)
        assert (reply.body, reply.header("x-served-by")) == (far, "up")
        assert (fake.calls[0].body, upstream.calls[0].body) == (padded, far)


async def test_one_list_has_them_all_and_errors_name_them(tmp_path):
    async with (
        both(tmp_path) as (gateway, _, _),
        openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="k") as client,
    ):
        assert [model.id async for model in client.models.list()] == ["m", "org/Far"]
        assert (await client.models.retrieve("org/Far")).id == "org/Far"
        for model, said in (("m", "".join(WORDS)), ("org/Far", "org/Far")):
            stream = await client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": "x"}], stream=True
            )
            parts = [part.choices[0].delta.content async for part in stream]
            assert "".join(parts) == said
        with pytest.raises(openai.NotFoundError, match="serves m, org/Far"):
            await client.chat.completions.create(model="nope", messages=[])
        # Nobody can tell whose files these are.
        assert (await gateway.post(b"", "/v1/files", method="GET")).status == 400


async def test_what_only_another_server_has_stays_reachable_there(tmp_path):
    async with both(tmp_path) as (gateway, _, upstream):
        body = b'{"model":"org/Far","query":"x"}'
        assert (await gateway.post(body, "/v1/rerank")).body == body
        assert upstream.calls[0].target == "/v1/rerank"
        assert (await gateway.post(STREAM, "/v1/rerank")).status == 404
