"""Chat through the gateway to a native replica: whole and streamed, and what goes along."""

from __future__ import annotations

import asyncio
import gc
import re
from dataclasses import replace

import orjson
import pytest

from gateway.generation.attempt import Attempt
from gateway.generation.call import LiveCall
from gateway.generation.reply import HttpReply
from tests.gateway.fake_llm import WORDS, FakeLLM, talk
from tests.gateway.generation.fakes import ASK, CHAT, STREAM, serving
from tests.gateway.relay.fakes import until


def words(body: bytes) -> list[str]:
    events = [event.removeprefix(b"data: ") for event in body.split(b"\n\n") if event]
    assert events.pop() == b"[DONE]"
    return [orjson.loads(event)["choices"][0]["delta"]["content"] for event in events]


async def test_a_whole_answer_is_one_body_with_its_length(tmp_path):
    fake = FakeLLM(tmp_path / "a")
    async with serving(tmp_path, fake) as gateway:
        reply = await gateway.post(ASK, fields="x-request-id: r-1\r\nx-timing: 1\r\n")
        assert reply.status == 200
        assert orjson.loads(reply.body)["choices"][0]["message"]["content"] == "".join(WORDS)
        assert reply.header("content-type") == "application/json"
        assert reply.header("content-length") == str(len(reply.body))
        assert reply.header("x-request-id") == "r-1"
        assert reply.header("x-model-version") == "1-a"
        assert reply.header("x-served-by") == "r0"
        assert re.fullmatch(r"queue;dur=[\d.]+, first;dur=[\d.]+", reply.header("server-timing"))
        assert fake.calls[0].body == ASK
        meta = fake.calls[0].meta
        assert (meta.surface, meta.request_id, meta.priority, meta.version) == (
            "chat",
            "r-1",
            0,
            None,
        )
        assert 0 < meta.deadline_ms <= 600_000
        assert gateway.counters()["done"] == 1


async def test_a_streams_events_are_passed_on_as_they_come(tmp_path):
    step = asyncio.Semaphore(0)

    async def script(call):
        for word in WORDS:
            call.delta(word)
            await step.acquire()
        call.done()

    async with serving(tmp_path, FakeLLM(tmp_path / "a", script)) as gateway:
        reply = await gateway.post(STREAM, complete=False)
        for number in range(len(WORDS)):
            await until(lambda n=number: reply.body.count(b"data: ") == n + 1)
            assert not reply.complete
            step.release()
        await until(lambda: reply.complete)
        assert words(reply.body) == list(WORDS)
        assert reply.header("content-type") == "text/event-stream"
        assert reply.header("x-model-version") == "1-a" and reply.header("x-served-by") == "r0"
        assert reply.header("x-request-id")


@pytest.mark.parametrize("size", [0, 20_000, 400_000])
async def test_a_body_of_any_size_and_order_reaches_its_model_as_it_is(tmp_path, size):
    text = "x" * size
    fake = FakeLLM(tmp_path / "a")
    async with serving(tmp_path, fake) as gateway:
        for body in (
            f'{{ "messages" : ["{text}", {{"model": "no"}}],\n "model":"m", "stream":true}}',
            f'{{"model": "m", "messages": "{text}\\" \\"model\\":1" , "stream" : true}}',
        ):
            client = await gateway.connect()
            reply = await gateway.post(body.encode(), client=client)
            assert words(reply.body) == list(WORDS)
            assert fake.calls[-1].body == body.encode()


async def test_paths_are_surfaces_and_others_are_refused(tmp_path):
    async def script(call):
        call.whole({"surface": call.meta.surface})

    fake = FakeLLM(tmp_path / "a", script)
    async with serving(tmp_path, fake) as gateway:
        for path, surface in (
            (CHAT, "chat"), ("/v1/completions", "completions"), ("/v1/responses", "responses"),
        ):  # fmt: skip
            assert orjson.loads((await gateway.post(ASK, path)).body) == {"surface": surface}
        reply = await gateway.post(ASK, "/v1/embeddings")
        assert reply.status == 404 and b"does not serve embeddings" in reply.body
        assert (await gateway.post(ASK, "/v1/audio/speech")).status == 404
        reply = await gateway.post(b"", CHAT, method="GET")
        assert reply.status == 405 and reply.header("allow") == "POST"
        fake.say(surfaces=("embeddings",))
        await until(lambda: gateway.model.calls.surfaces == {"embeddings"})
        assert (await gateway.post(ASK, "/v1/embeddings")).status == 200


async def test_a_call_that_has_ended_holds_nothing(tmp_path):
    async def script(call):
        if b"refuse" in call.body:
            call.fault(status=400, code="x", message="x")
        elif b"break" in call.body:
            call.delta("x")
            call.fault(status=500, code="x", message="x")
        else:
            await talk(call)

    def held() -> int:
        return sum(type(each) in (LiveCall, Attempt, HttpReply) for each in gc.get_objects())

    async with serving(tmp_path, FakeLLM(tmp_path / "a", script)) as gateway:
        gc.collect()
        gc.disable()
        try:
            for body in (ASK, STREAM, STREAM[:-1] + b',"refuse":1}', STREAM[:-1] + b',"break":1}'):
                for fields in ("", "x-deadline-ms: 0.01\r\n", "x-model-version: 9\r\n"):
                    await gateway.post(body, fields=fields)
            await until(lambda: not held())
        finally:
            gc.enable()


async def test_what_operators_see(tmp_path):
    fake = FakeLLM(tmp_path / "a")
    fake.load = {"running": 3.0, "prefill_rate": 100.0}
    async with serving(tmp_path, fake) as gateway:
        await gateway.post(STREAM)
        status = gateway.model.status()
        assert (status["kind"], status["ready"]) == ("llm", True)
        (replica,) = status["replicas"]
        assert (replica["unit"], replica["slots"]) == ("tokens", 8)
        assert replica["load"]["running"] == 3.0
        families = {family[0]: family[4:] for family in gateway.fleet.families()}
        tokens = {labels[1]: value for labels, value in families["penstock_tokens_total"]}
        assert tokens == {"prompt": 8, "cached": 0, "completion": 4}
        assert families["penstock_calls_answered_total"] == [[["m", "chat"], 1]]
        assert families["penstock_first_token_seconds"][0][1]["count"] == 1
        assert families["penstock_between_tokens_seconds"][0][1]["count"] == len(WORDS)


async def test_a_replica_of_another_kind_than_configured_is_not_used(tmp_path):
    fake = FakeLLM(tmp_path / "a")
    fake.kind = "tensor"
    async with serving(tmp_path, fake, model='kind = "llm"', ready=False) as gateway:
        await until(lambda: "is of kind 'tensor'" in gateway.model.reason())
        reply = await gateway.post(ASK)
        assert reply.status == 503 and b"the configuration says 'llm'" in reply.body


async def test_a_model_that_leaves_the_configuration_ends_its_streams_visibly(tmp_path):
    async def script(call):
        call.delta("The")
        await call.cancelled.wait()
        call.piece(final=True)

    async with serving(tmp_path, FakeLLM(tmp_path / "a", script)) as gateway:
        reply = await gateway.post(STREAM, complete=False)
        await until(lambda: reply.body)
        model = gateway.model
        gateway.fleet.apply(replace(gateway.config, models=()))
        await until(lambda: reply.complete)
        assert b"no longer served" in reply.body and model.calls.live == 0
        gateway.fleet.apply(gateway.config)
        await until(lambda: gateway.model.ready)


async def test_a_model_is_asked_for_by_other_names(tmp_path):
    names = '[models.generation]\nnames = ["org/M-7B", "small"]'
    async with serving(tmp_path, FakeLLM(tmp_path / "a"), model=names) as gateway:
        listed = orjson.loads((await gateway.post(b"", "/v1/models", method="GET")).body)["data"]
        assert [model["id"] for model in listed] == ["org/M-7B", "small"]
        for name in ("org/M-7B", "small"):
            body = STREAM.replace(b'"m"', b'"%b"' % name.encode())
            assert (await gateway.post(body)).status == 200
        assert (await gateway.post(STREAM)).status == 404
