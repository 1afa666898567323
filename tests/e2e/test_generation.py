"""A language model from a published run to the OpenAI SDK: real processes, a tiny model, its death
and its renewal under load. No stream is lost in silence or mixed, and the counters balance."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import openai
import orjson
import pytest
import torch
import websockets

from backends.checkpoint import Run
from backends.importing.deposit import deposit
from backends.importing.sources import opened
from tests.backends.importing import samples
from tests.e2e.fleet import GatewayProcess
from tests.e2e.test_loop import until

ASK = [{"role": "user", "content": "The penstock is the gate"}]
ENDLESS = {"ignore_eos": True}


def publish(folder: Path, seed: int) -> str:
    """Another version of the tiny model, with weights of its own."""
    _, decoder = samples.model("llama", max_position_embeddings=1024)
    torch.manual_seed(seed)
    for parameter in decoder.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)
    file = samples.gguf_file(folder / f"{seed}.gguf", decoder)
    with opened(str(file)) as material:
        return deposit(material, Run(folder / "run"), dtype="fp32").version


class Served:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.first = publish(folder, 1)
        (folder / "tiny.replica.toml").write_text(
            'model = "tiny"\nkind = "llm"\nrun = "run"\nthreads = 1\npages = 1024\ndevice = "cpu"\n'
            "poll_s = 0.05\nprobation_s = 0.5\nversions = 2\n"
        )
        self.gateway = GatewayProcess(
            folder,
            '[[models]]\nname = "tiny"\nkind = "llm"\n[[models.replicas]]\n'
            'name = "tiny"\ncount = 2\nspawn = "tiny.replica.toml"\n',
        )

    def client(self, **options) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.gateway.url}/v1", api_key="k", **options)

    def counters(self) -> dict[str, int]:
        return self.gateway.status()["models"][0]["counters"]

    def running(self) -> float:
        return sum(replica["load"].get("running", 0.0) for replica in self.gateway.replicas())


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    served = Served(tmp_path_factory.mktemp("generation"))
    served.gateway.wait_ready()
    yield served
    counters = served.counters()
    assert served.gateway.stop() == 0, served.gateway.log
    assert counters.pop("accepted") == sum(counters.values()) and counters["live"] == 0, counters


async def said(stream) -> str:
    parts = [chunk async for chunk in stream]
    assert parts[-1].choices[0].finish_reason
    return "".join(part.choices[0].delta.content or "" for part in parts)


async def test_every_surface_says_the_same(served):
    await until(
        "two replicas", lambda: all(r["state"] == "ready" for r in served.gateway.replicas())
    )
    how = {"model": "tiny", "temperature": 0, "max_tokens": 24}
    async with served.client() as client:
        whole = await client.chat.completions.with_raw_response.create(messages=ASK, **how)
        assert whole.headers["x-model-version"] == served.first
        message = whole.parse().choices[0].message.content
        assert message and whole.parse().usage.completion_tokens <= 24
        stream = await client.chat.completions.create(messages=ASK, stream=True, **how)
        assert await said(stream) == message
        text = await client.completions.create(prompt="The penstock", **how)
        assert [model.id async for model in client.models.list()] == ["tiny"]
        with pytest.raises(openai.BadRequestError, match="bogus"):
            await client.chat.completions.create(messages=ASK, extra_body={"bogus": 1}, **how)
        with pytest.raises(openai.NotFoundError, match="does not serve embeddings"):
            await client.embeddings.create(model="tiny", input="x")
    generated = await ask(
        served, {"text_input": "The penstock", "max_tokens": 24, "temperature": 0}
    )
    assert generated["text_output"] == text.choices[0].text
    url = served.gateway.url.replace("http", "ws") + "/ws"
    async with websockets.connect(url) as socket:
        fields = {"messages": ASK, "temperature": 0, "max_tokens": 24}
        asked = {"type": "generate", "id": "x", "model_name": "tiny", **fields}
        await socket.send(orjson.dumps(asked).decode())
        heard = []
        while not heard or heard[-1]["type"] == "delta":
            heard.append(orjson.loads(await socket.recv()))
        assert "".join(part["text"] for part in heard[:-1]) == message
        assert (heard[-1]["type"], heard[-1]["model_version"]) == ("result", served.first)


async def ask(served, document) -> dict:
    def post() -> dict:
        import urllib.request

        url = f"{served.gateway.url}/v2/models/tiny/generate"
        with urllib.request.urlopen(url, data=orjson.dumps(document), timeout=30) as reply:
            return orjson.loads(reply.read())

    return await asyncio.to_thread(post)


async def test_a_client_that_leaves_frees_the_engine(served):
    async with served.client() as client:
        stream = await client.chat.completions.create(
            model="tiny", messages=ASK, max_tokens=900, extra_body=ENDLESS, stream=True
        )
        await anext(stream)
        await until("it runs", lambda: served.running() > 0)
        await stream.close()
        await until("it is gone", lambda: served.running() == 0)
        with pytest.raises((openai.APITimeoutError, openai.InternalServerError)):
            await client.with_options(timeout=0.3, max_retries=0).chat.completions.create(
                model="tiny", messages=ASK, max_tokens=900, extra_body=ENDLESS
            )
        await until("that one, too", lambda: served.running() == 0)


async def test_streams_go_on_while_a_new_version_takes_over(served):
    done: list[str | None] = []
    stop = asyncio.Event()

    async def talk(number: int) -> None:
        async with served.client(max_retries=0) as client:
            while not stop.is_set():
                reply = await client.chat.completions.with_raw_response.create(
                    model="tiny", messages=ASK, max_tokens=40, extra_body=ENDLESS, user=str(number),
                    stream=True,
                )  # fmt: skip
                versions = {part.system_fingerprint async for part in reply.parse()}
                assert versions == {reply.headers["x-model-version"]}
                done.append(versions.pop())

    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(talk(number))
        await until("traffic", lambda: len(done) > 4)
        second = await asyncio.to_thread(publish, served.folder, 2)
        await until(
            "the new version",
            lambda: {replica["version"] for replica in served.gateway.replicas()} == {second},
        )
        before = len(done)
        await until("traffic on it", lambda: len(done) > before + 4)
        stop.set()
    assert set(done) == {served.first, second} and done[-1] == second
    # The old one is still there for who pins it.
    async with served.client() as client:
        reply = await client.chat.completions.with_raw_response.create(
            model="tiny",
            messages=ASK,
            max_tokens=4,
            extra_headers={"x-model-version": served.first},
        )
        assert reply.headers["x-model-version"] == served.first


async def test_a_replica_that_is_killed_costs_no_whole_answer_and_ends_no_stream_in_silence(served):
    lost: list[str] = []
    done: list[bool] = []
    stop = asyncio.Event()

    async def talk(client: openai.AsyncOpenAI, stream: bool) -> None:
        while not stop.is_set():
            how = {"model": "tiny", "max_tokens": 60, "extra_body": ENDLESS}
            try:
                answer = await client.chat.completions.create(messages=ASK, stream=stream, **how)
                if stream:
                    assert await said(answer)
                done.append(stream)
            except openai.APIError as error:
                assert stream and "died" in str(error), error
                lost.append(str(error))

    async with served.client(max_retries=0) as client, asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(talk(client, number % 2 == 0))
        await until("both at work", lambda: all(r["in_flight"] for r in served.gateway.replicas()))
        os.kill(served.gateway.replicas()[0]["pid"], signal.SIGKILL)
        await until("its end", lambda: served.gateway.replicas()[0]["state"] == "unreachable")
        before = len(done)
        await until("traffic on the other", lambda: len(done) > before + 16)
        stop.set()
    # At most those that were on it.
    assert len(lost) <= 4
    assert served.gateway.status()["models"][0]["ready"]
