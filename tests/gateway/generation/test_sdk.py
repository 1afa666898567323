"""The unmodified OpenAI SDK against a native replica that is scripted: what users would see."""

from __future__ import annotations

import asyncio
import contextlib

import openai
import orjson
import pytest

from tests.gateway.fake_llm import WORDS, FakeLLM, talk
from tests.gateway.fakes import until
from tests.gateway.generation.fakes import serving

ASK = {"model": "m", "messages": [{"role": "user", "content": "What is the capital of France?"}]}


@contextlib.asynccontextmanager
async def asking(tmp_path, script=talk, **options):
    fake = FakeLLM(tmp_path / "a", script)
    async with (
        serving(tmp_path, fake) as gateway,
        openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="k", **options) as client,
    ):
        yield client, fake, gateway


async def test_chat_whole_and_streamed(tmp_path):
    async with asking(tmp_path) as (client, fake, gateway):
        whole = await client.chat.completions.create(**ASK)
        assert whole.choices[0].message.content == "".join(WORDS)
        assert whole.usage is not None and whole.usage.total_tokens == 12
        stream = await client.chat.completions.create(**ASK, stream=True)
        assert [chunk.choices[0].delta.content async for chunk in stream] == list(WORDS)
        assert [call.meta.surface for call in fake.calls] == ["chat", "chat"]
        # What the SDK waits for is what the replica has.
        assert fake.calls[0].meta.deadline_ms <= 600_000
        assert gateway.counters()["done"] == 2


async def test_headers_and_extra_fields_pass(tmp_path):
    async with asking(tmp_path) as (client, fake, _):
        raw = await client.chat.completions.with_raw_response.create(
            **ASK,
            user="u-1",
            extra_body={"top_k": 5},
            extra_headers={"x-request-id": "mine", "x-priority": "7", "x-model-version": "1"},
        )
        assert raw.headers["x-request-id"] == "mine" and raw.headers["x-model-version"] == "1-a"
        (call,) = fake.calls
        assert (call.meta.priority, call.meta.version) == (7, "1-a")
        assert (call.document["top_k"], call.document["user"]) == (5, "u-1")


async def test_errors_are_the_sdks_own(tmp_path):
    async def script(call):
        call.fault(status=400, code="context_length_exceeded", message="too long", param="messages")

    async with asking(tmp_path, script) as (client, fake, gateway):
        with pytest.raises(openai.BadRequestError) as bad:
            await client.chat.completions.create(**ASK)
        assert (bad.value.code, bad.value.param) == ("context_length_exceeded", "messages")
        assert len(fake.calls) == 1
        with pytest.raises(openai.NotFoundError, match="no model 'nope'"):
            await client.chat.completions.create(**{**ASK, "model": "nope"})
        gateway.fleet.drain("r0")
        with pytest.raises(openai.InternalServerError, match="draining"):
            await client.with_options(max_retries=0).chat.completions.create(**ASK)


async def test_a_stream_that_breaks_raises(tmp_path):
    async def script(call):
        call.delta("The")
        call.fault(status=500, code="model_error", message="it broke")

    async with asking(tmp_path, script) as (client, fake, _):
        stream = await client.chat.completions.create(**ASK, stream=True)
        assert (await anext(stream)).choices[0].delta.content == "The"
        with pytest.raises(openai.APIError, match="it broke"):
            await anext(stream)
        assert len(fake.calls) == 1


async def test_what_the_gateway_gave_up_is_not_retried_by_the_sdk(tmp_path):
    async def script(call):
        call.fault(status=503, code="overloaded", message="not now", retryable=True)

    async with asking(tmp_path, script, max_retries=2) as (client, _, gateway):
        with pytest.raises(openai.InternalServerError, match="not now"):
            await client.chat.completions.create(**ASK)
        assert gateway.counters()["failed"] == 1


async def test_a_cancelled_stream_reaches_the_replica(tmp_path):
    async def script(call):
        while not call.cancelled.is_set():
            call.delta("x")
            await asyncio.sleep(0.001)
        call.piece(final=True)

    async with asking(tmp_path, script) as (client, fake, gateway):
        stream = await client.chat.completions.create(**ASK, stream=True)
        async for _ in stream:
            break
        await stream.close()
        await asyncio.wait_for(fake.calls[0].cancelled.wait(), 20)
        await until(lambda: gateway.counters()["cancelled"] == 1)


async def test_a_timeout_of_the_sdk_reaches_the_replica(tmp_path):
    async def script(call):
        await call.cancelled.wait()
        call.piece(final=True)

    async with asking(tmp_path, script, max_retries=0) as (client, fake, gateway):
        # The gateway's 504 and the SDK's own limit are due at the same time.
        with pytest.raises((openai.APITimeoutError, openai.InternalServerError)):
            await client.with_options(timeout=0.5).chat.completions.create(**ASK)
        assert fake.calls[0].meta.deadline_ms <= 500
        await asyncio.wait_for(fake.calls[0].cancelled.wait(), 20)
        await until(lambda: gateway.counters()["live"] == 0)


async def test_models_embeddings_completions_and_responses(tmp_path):
    async def script(call):
        surface = call.meta.surface
        if surface == "embeddings":
            vector = {"object": "embedding", "index": 0, "embedding": [0.5, 1.0]}
            usage = {"prompt_tokens": 2, "total_tokens": 2}
            call.whole({"object": "list", "data": [vector], "model": "m", "usage": usage})
        elif surface == "completions":
            choice = {"index": 0, "text": "Paris", "finish_reason": "stop", "logprobs": None}
            head = {"id": "c", "object": "text_completion", "created": 1, "model": "m"}
            call.whole({**head, "choices": [choice]})
        else:
            event = {"type": "response.output_text.delta", "delta": "Paris"}
            call.piece(b"event: response.output_text.delta\ndata: " + orjson.dumps(event) + b"\n\n")
            call.piece(final=True)

    async with asking(tmp_path, script) as (client, fake, gateway):
        fake.say(surfaces=("completions", "embeddings", "responses"))
        await until(lambda: "embeddings" in gateway.model.calls.surfaces)
        assert [model.id async for model in client.models.list()] == ["m"]
        assert (await client.models.retrieve("m")).owned_by == "penstock"
        vectors = await client.embeddings.create(model="m", input="x", encoding_format="float")
        assert vectors.data[0].embedding == [0.5, 1.0]
        text = await client.completions.create(model="m", prompt="The capital of France is")
        assert text.choices[0].text == "Paris"
        stream = await client.responses.create(model="m", input="x", stream=True)
        assert [event.delta async for event in stream] == ["Paris"]


async def test_many_streams_at_once_share_one_link(tmp_path):
    async with asking(tmp_path) as (client, fake, gateway):
        fake.say(slots=64)

        async def one(number):
            parts = await client.chat.completions.create(**ASK, stream=True, user=str(number))
            return [part.choices[0].delta.content async for part in parts]

        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(one(number)) for number in range(100)]
        assert all(task.result() == list(WORDS) for task in asked)
        assert gateway.counters()["done"] == 100
