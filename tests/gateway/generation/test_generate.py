"""The generate extension of OIP over a native language model, and what the protocol says of one."""

from __future__ import annotations

import orjson

from backends.wire import GENERATIVE
from tests.gateway.fake_llm import FakeLLM
from tests.gateway.fakes import DOUBLE, FakeReplica, until
from tests.gateway.generation.fakes import serving

ASK = b'{"text_input":"hello","parameters":{"max_tokens":5,"timeout":250000}}'
PATH = "/v2/models/m/generate"


async def echo(call):
    if call.meta.surface == "generate_stream":
        call.piece(b'data: {"text_output":"a"}\n\n')
        call.piece(b'data: {"text_output":"b"}\n\n', final=True)
    else:
        call.whole({"text_output": "ab", "model_name": "m", "model_version": "1-a"})


async def test_generate_and_its_stream(tmp_path):
    fake = FakeLLM(tmp_path / "a", echo)
    async with serving(tmp_path, fake) as gateway:
        reply = await gateway.post(ASK, PATH)
        assert (reply.status, orjson.loads(reply.body)["text_output"]) == (200, "ab")
        assert reply.header("x-served-by") == "r0" and reply.header("x-request-id")
        reply = await gateway.post(ASK, PATH + "_stream")
        assert reply.header("content-type") == "text/event-stream"
        assert reply.body == b'data: {"text_output":"a"}\n\ndata: {"text_output":"b"}\n\n'
        assert [call.body for call in fake.calls] == [ASK, ASK]
        # OIP's timeouts are microseconds.
        assert all(call.meta.deadline_ms <= 250 for call in fake.calls)
        assert gateway.counters()["done"] == 2


async def test_a_version_in_the_path_or_the_head_is_pinned(tmp_path):
    fake = FakeLLM(tmp_path / "a", echo)
    fake.versions = ("1-a", "2-b")
    async with serving(tmp_path, fake) as gateway:
        versioned = "/v2/models/m/versions/2/generate"
        reply = await gateway.post(ASK, versioned)
        assert (reply.status, reply.header("x-model-version")) == (200, "2-b")
        reply = await gateway.post(ASK, PATH, fields="x-model-version: 1\r\n")
        assert reply.header("x-model-version") == "1-a"
        reply = await gateway.post(ASK, versioned, fields="x-model-version: 1\r\n")
        assert reply.status == 400 and b"x-model-version" in reply.body
        reply = await gateway.post(ASK, "/v2/models/m/versions/7/generate")
        assert reply.status == 404 and b"no version" in reply.body


async def test_what_the_protocol_says_of_a_model_that_takes_calls(tmp_path):
    async with serving(tmp_path, FakeLLM(tmp_path / "a", echo)) as gateway:

        async def told(path):
            reply = await gateway.post(b"", path, method="GET")
            return reply.status, orjson.loads(reply.body)

        status, metadata = await told("/v2/models/m")
        assert (status, metadata["versions"], metadata["inputs"]) == (200, ["1-a"], [])
        assert metadata["surfaces"] == sorted(GENERATIVE)
        status, config = await told("/v2/models/m/config")
        assert (status, config["model_transaction_policy"]) == (200, {"decoupled": True})
        assert (await told("/v2/models/m/ready"))[1]["ready"] is True
        assert "generate" in (await told("/v2"))[1]["extensions"]
        paths = (await told("/v2/openapi.json"))[1]["paths"]
        assert "/v2/models/{model_name}/generate_stream" in paths
        await gateway.post(ASK, PATH)
        (stats,) = (await told("/v2/models/m/stats"))[1]["model_stats"]
        assert (stats["inference_count"], stats["inference_stats"]["success"]["count"]) == (1, 1)
        reply = await gateway.post(b'{"inputs":[]}', "/v2/models/m/infer")
        assert reply.status == 501 and b"takes no tensors" in reply.body


async def test_a_model_of_tensors_generates_nothing(tmp_path):
    tensor = FakeReplica(tmp_path / "t", model="t")
    await tensor.start()
    more = f'[[models]]\nname="t"\n[[models.replicas]]\nname="t0"\naddress="{tensor.address}"\n'
    async with serving(tmp_path, FakeLLM(tmp_path / "a", echo), more=more) as gateway:
        await until(lambda: gateway.fleet.model("t").ready)
        reply = await gateway.post(ASK, "/v2/models/t/generate")
        assert reply.status == 501 and b"does not serve generate" in reply.body
        reply = await gateway.post(b'{"model":"t"}', "/v1/chat/completions")
        assert reply.status == 404 and b"tensors only" in reply.body
        listed = orjson.loads((await gateway.post(b"", "/v1/models", method="GET")).body)
        assert [model["id"] for model in listed["data"]] == ["m"]
    await tensor.stop()


async def test_a_model_that_nobody_has_heard_of_yet_is_not_there_yet(tmp_path):
    fake = FakeLLM(tmp_path / "a", echo)
    async with serving(tmp_path, fake, ready=False) as gateway:
        await fake.stop()
        reply = await gateway.post(ASK, PATH)
        assert (reply.status, reply.header("retry-after")) == (503, "1")
        await fake.start()
        await until(lambda: gateway.model.ready)
        assert (await gateway.post(ASK, PATH)).status == 200


async def test_a_model_of_tensors_may_take_calls_too(tmp_path):
    async def script(call):
        vector = {"object": "embedding", "index": 0, "embedding": [0.5]}
        call.whole({"object": "list", "data": [vector]}, usage=(3, 0, 0))

    fake = FakeLLM(tmp_path / "a", script)
    fake.kind, fake.surfaces, fake.signature = "tensor", ("embeddings",), DOUBLE.to_json()
    async with serving(tmp_path, fake) as gateway:
        reply = await gateway.post(b'{"model":"m","input":"x"}', "/v1/embeddings")
        assert (reply.status, orjson.loads(reply.body)["data"][0]["embedding"]) == (200, [0.5])
        assert gateway.model.kind == "tensor"
        # There are no answers to wait for, so that the text is all of the work.
        assert gateway.model.calls.work.estimate(40, 0, 0).tokens_out == 0.0
        metadata = await gateway.post(b"", "/v2/models/m", method="GET")
        assert orjson.loads(metadata.body)["inputs"][0]["name"] == "x"
        assert (await gateway.post(ASK, PATH)).status == 501
        listed = await gateway.post(b"", "/v1/models", method="GET")
        assert [model["id"] for model in orjson.loads(listed.body)["data"]] == ["m"]
