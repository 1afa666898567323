"""A language-model replica over its socket: truthful, reloaded under load, one answer a CALL."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch

from backends.checkpoint import Manifest, Probe, Run, Staging, commit, publish
from backends.config import parse
from backends.llm.engine import Engine
from backends.llm.loading import LlmLoader, Twin
from backends.llm.machine import Machine
from backends.llm.replica import LlmReplica
from backends.models.decoder import Decoder
from backends.wire import Call, Kind, split_stream
from tests.backends.fakes import Gateway, eventually
from tests.backends.llm.asking import events
from tests.backends.llm.fakes import HashNetwork
from tests.backends.llm.scripted import byte_level, text_model, write_model
from tests.backends.models.shapes import config

SIZE = text_model().vocabulary.size
HI = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0, "max_tokens": 12}
LONG = {**HI, "max_tokens": 250, "ignore_eos": True, "stream": True}


class Network(HashNetwork):
    """What becomes of a checkpoint here; some become what nobody would serve. `trap` is called at
    each step."""

    trap: Callable[[int], None] | None = None

    def __init__(self, salt: int, **options: Any) -> None:
        super().__init__(salt, vocabulary=SIZE, **options)

    def _logits(self, tokens):
        logits = super()._logits(tokens)
        return logits * torch.nan if self.salt == 13 else logits

    def exchange_(self, twin):
        if 99 in (self.salt, twin.salt):
            raise RuntimeError("out of memory")
        self.salt, twin.salt = twin.salt, self.salt

    def __call__(self, step, cache):
        trap = Network.trap
        if trap is not None:
            trap(self.salt)
        return super().__call__(step, cache)


@pytest.fixture
def trap() -> Iterator[Callable[[Callable[[int], None] | None], None]]:
    """Set what happens at each step from now on."""

    def setter(what: Callable[[int], None] | None) -> None:
        Network.trap = what

    yield setter
    Network.trap = None


def commit_llm(
    run: Run, step: int, salt: int, probe: Probe | None = None, **config: Any
) -> Manifest:
    """A version whose text depends on `salt`; 13 is bad luck."""
    staging = Staging(run, step, 0, 0)
    staging.create()
    parts = [staging.write_shard(0, 1, {"salt": torch.tensor(float(salt))})]
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), **config)
        parts += [
            staging.write_file(f"model/{path.name}", path.read_bytes())
            for path in sorted(Path(folder).iterdir())
        ]
    expected = {"salt": ((), torch.float32)}
    model = {"class": "m:M", "config": {"salt": salt}}
    return commit(
        staging, parts, ranks=1, model=model, expected=expected, position=step, probe=probe
    )


def commit_decoder(run: Run, step: int) -> Decoder:
    """The same with the weights of a tiny decoder."""
    described = config("qwen3-tied", vocab_size=SIZE, dtype="float32", max_position_embeddings=128)
    torch.manual_seed(step)
    decoder = Decoder(**described).eval()
    tensors = {k: v for k, v in decoder.state_dict().items() if k != "lm_head.weight"}
    staging = Staging(run, step, 0, 0)
    staging.create()
    parts = [staging.write_shard(0, 1, tensors)]
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        parts += [
            staging.write_file(f"model/{path.name}", path.read_bytes())
            for path in sorted(Path(folder).iterdir())
        ]
    expected = {name: (tuple(t.shape), t.dtype) for name, t in decoder.state_dict().items()}
    commit(
        staging,
        parts,
        ranks=1,
        model={"class": "backends.models.decoder:Decoder", "config": described},
        expected=expected,
        position=step,
        ties={"lm_head.weight": "model.embed_tokens.weight"},
    )
    return decoder


def build(config, emit, crashed):
    def engine(network, version, emit, crashed):
        return Engine(
            network,
            emit,
            pages=config.pages,
            page_size=config.page_size,
            max_running=config.max_running,
            max_waiting=config.max_waiting,
            version=version,
            crashed=crashed,
        )

    def read(folder, manifest, rate, cancelled):
        return Network(manifest.model["config"]["salt"])

    machine = Machine(engine, emit, crashed)
    return LlmLoader(read, machine, holder="test", bytes_per_second=0), machine


def build_exchanging(config, emit, crashed):
    """The device has room for one version."""

    def engine(network, version, emit, crashed):
        return Engine(network, emit, pages=400, version=version, crashed=crashed)

    def read(folder, manifest, rate, cancelled):
        network = Network(manifest.model["config"]["salt"])
        if not machine.serving:
            return network
        return Twin(network, Machine(engine, lambda outputs: None, crashed))

    machine = Machine(engine, emit, crashed)
    return LlmLoader(read, machine, holder="test", bytes_per_second=0), machine


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture
def run(folder: Path) -> Run:
    return Run(folder / "run")


@pytest.fixture
def serve(folder: Path):
    @asynccontextmanager
    async def serve(text: str = "", how: Any = build, **keys: Any) -> Any:
        head = (
            'model = "m"\nkind = "llm"\nrun = "run"\ndevice = "cpu"\npages = 400\npoll_s = 0.01\n'
        )
        overrides = [f"{key}={value}" for key, value in keys.items()]
        options = parse(head + text, folder / "r.toml", {}, overrides)
        log: list[tuple[str, dict[str, Any]]] = []
        replica: Any = LlmReplica(
            options,
            lambda event, **fields: log.append((event, fields)),
            build=how,
        )
        replica.log = log
        replica.address = await replica.server.listen(f"unix:{folder}/r.sock")
        replica.start()
        try:
            yield replica
        finally:
            await replica.close()
            assert replica.join(10)

    return serve


class Caller(Gateway):
    def call(self, surface: str, body: Any, **meta: Any) -> int:
        called = Call(surface=surface, **meta).to_json()
        return self.send(Kind.CALL, called, [orjson.dumps(body)])

    def pieces(self, id: int) -> list[tuple[Any, bytes]]:
        return [
            (piece, bytes(data))
            for frame in self.frames
            if frame.kind == Kind.STREAM
            for piece, data in split_stream(frame)
            if piece.id == id
        ]

    async def reply(self, id: int) -> tuple[bytes, str]:
        """All of it, and the version that it came from."""
        await self.until(lambda: any(piece.final for piece, _ in self.pieces(id)))
        pieces = self.pieces(id)
        return b"".join(data for _, data in pieces), pieces[0][0].info["version"]

    async def answer_of(self, id: int) -> Any:
        """The frame that ends it."""

        def ends(frame: Any) -> bool:
            if frame.kind == Kind.ERROR:
                return bool(frame.id == id)
            return frame.kind == Kind.STREAM and any(
                piece.final and piece.id == id for piece, _ in split_stream(frame)
            )

        await self.until(lambda: any(map(ends, self.frames)))
        return next(filter(ends, self.frames))

    async def text(self, **meta: Any) -> tuple[str, str]:
        data, version = await self.reply(self.call("chat", HI, **meta))
        return orjson.loads(data)["choices"][0]["message"]["content"], version


async def test_it_is_ready_once_it_has_generated(serve, run):
    async with serve() as replica:
        gateway = await Caller.connect(replica.address)
        fault = await gateway.fault(gateway.call("chat", HI))
        assert (fault.status, fault.code, fault.retryable) == (503, "not_ready", True)
        await gateway.until(lambda: "first published" in gateway.statuses[-1].reason)
        manifest = commit_llm(run, 1, 7)
        publish(run, "stable", 1)
        ready = await gateway.state("ready")
        assert (ready.kind, ready.version, ready.slots) == ("llm", manifest.version, 64)
        assert ready.load["pages_total"] == 400 and ready.load["prompt_total"] > 0, "it was warm"
        data, version = await gateway.reply(gateway.call("chat", HI))
        assert version == manifest.version
        usage = orjson.loads(data)["usage"]
        assert usage["prompt_tokens"] > 10 and usage["completion_tokens"] <= 12
        await gateway.until(lambda: gateway.statuses[-1].load["calls_done"] == 1)
        refused = await gateway.fault(gateway.send(Kind.EXECUTE, {}))
        assert refused.code == "unsupported"
        await gateway.close()


async def test_a_stream_and_a_call_that_is_wrong(serve, run):
    commit_llm(run, 1, 7)
    publish(run, "stable", 1)
    async with serve() as replica:
        gateway = await Caller.connect(replica.address)
        await gateway.state("ready")
        data, _ = await gateway.reply(gateway.call("chat", {**HI, "stream": True}))
        *chunks, done = events(data)
        assert done == "[DONE]" and chunks[-1]["choices"][0]["finish_reason"]
        fault = await gateway.fault(gateway.call("chat", {**HI, "temprature": 1}))
        assert (fault.status, fault.param) == (400, "temprature")
        over = await gateway.fault(gateway.call("completions", {"prompt": "x" * 600}))
        assert over.code == "context_length_exceeded"
        await gateway.close()


async def test_cancel_and_loss_give_back_every_page(serve, run):
    commit_llm(run, 1, 7)
    publish(run, "stable", 1)
    async with serve() as replica:
        gateway = await Caller.connect(replica.address)
        await gateway.state("ready")
        id = gateway.call("chat", LONG)
        await gateway.until(lambda: bool(gateway.pieces(id)))
        gateway.send(Kind.CANCEL, id=id)
        await gateway.until(
            lambda: any(f.kind == Kind.ERROR and f.id == id for f in gateway.frames)
        )
        lost = await Caller.connect(replica.address)
        other = lost.call("chat", LONG)
        await lost.until(lambda: bool(lost.pieces(other)))
        await lost.close()
        machine = replica._machine
        await eventually(lambda: machine.load.running == 0)
        await eventually(lambda: machine.load.pages_free + machine.load.pages_cached == 400)
        assert (await gateway.text())[0]
        await gateway.until(lambda: gateway.statuses[-1].load.get("calls_cancelled") == 2)
        await gateway.close()


async def test_a_reload_loses_nothing_and_streams_keep_their_version(serve, run):
    old = commit_llm(run, 1, 7)
    publish(run, "stable", 1)
    async with serve('swap = "auto"\nprobation_s = 0') as replica:
        gateway = await Caller.connect(replica.address)
        await gateway.state("ready")
        before, _ = await gateway.text()
        streams = [gateway.call("chat", {**LONG, "seed": n}) for n in range(2)]
        await gateway.until(lambda: all(gateway.pieces(id) for id in streams))
        new = commit_llm(run, 2, 8)
        publish(run, "stable", 2)
        await gateway.serves(new.version)
        after, version = await gateway.text()
        assert version == new.version and after != before
        for id in streams:
            data, version = await gateway.reply(id)
            assert version == old.version and events(data)[-1] == "[DONE]"
        await gateway.until(lambda: gateway.statuses[-1].versions == (new.version,))
        gone = await gateway.fault(gateway.call("chat", HI, version=old.version))
        assert gone.code == "model_version_not_found"
        await gateway.close()


async def test_a_stream_that_outlives_its_version_says_which_tokens_were_whose(serve, run):
    old = commit_llm(run, 1, 7)
    publish(run, "stable", 1)
    async with serve('swap = "auto"\nprobation_s = 0\nfinish_s = 0') as replica:
        gateway = await Caller.connect(replica.address)
        await gateway.state("ready")
        plain = {key: value for key, value in LONG.items() if key != "messages"}
        asked = {"chat": {**LONG, "seed": 1}, "completions": {**plain, "prompt": "Hi"}}
        streams = {gateway.call(surface, body): surface for surface, body in asked.items()}
        await gateway.until(lambda: all(gateway.pieces(id) for id in streams))
        new = commit_llm(run, 2, 8)
        publish(run, "stable", 2)
        await gateway.serves(new.version)
        for id in streams:
            data, version = await gateway.reply(id)
            assert version == old.version
            spans = events(data)[-2]["model_versions"]
            assert [span["version"] for span in spans] == [old.version, new.version]
            assert all(span["tokens"] > 0 for span in spans)
        await gateway.close()


def said_last(surface: str, data: bytes) -> dict[str, Any]:
    """Of an answer of that surface, where it tells its versions."""
    if surface == "ws":
        return orjson.loads(data.splitlines()[-1])
    if not data.startswith((b"data: ", b"event: ")):
        return orjson.loads(data)
    last = [event for event in events(data) if event != "[DONE]"][-1]
    return last.get("response", last)


async def test_every_surface_says_which_tokens_were_whose(serve, run, trap):
    old = commit_llm(run, 1, 7)
    publish(run, "stable", 1)
    plain = {"temperature": 0, "ignore_eos": True}
    asked = [
        ("chat", {**LONG, "stream": False}),
        ("completions", {**plain, "max_tokens": 250, "prompt": "Hi"}),
        ("responses", {**plain, "max_output_tokens": 250, "input": "Hi"}),
        ("responses", {**plain, "max_output_tokens": 250, "input": "Hi", "stream": True}),
        ("generate", {**plain, "max_tokens": 250, "text_input": "Hi"}),
        ("generate_stream", {**plain, "max_tokens": 250, "text_input": "Hi"}),
        ("ws", {**plain, "max_tokens": 250, "text_input": "Hi"}),
        ("ws", {**plain, "max_tokens": 250, "messages": HI["messages"]}),
    ]
    async with serve('swap = "auto"\nprobation_s = 0\nfinish_s = 0') as replica:
        gateway = await Caller.connect(replica.address)
        await gateway.state("ready")
        swapped = threading.Event()
        # None ends before the new version is there.
        trap(lambda salt: salt == 7 and swapped.wait(0.01) and None)
        calls = [gateway.call(surface, body) for surface, body in asked]
        await gateway.until(lambda: gateway.statuses[-1].load.get("running") == len(asked))
        new = commit_llm(run, 2, 8)
        publish(run, "stable", 2)
        await gateway.serves(new.version)
        swapped.set()
        for id, (surface, _) in zip(calls, asked, strict=True):
            data, version = await gateway.reply(id)
            assert version == old.version, surface
            spans = said_last(surface, data)["model_versions"]
            assert [span["version"] for span in spans] == [old.version, new.version], surface
            assert sum(span["tokens"] for span in spans) == 250, surface
        short, _ = await gateway.reply(gateway.call("generate", {**plain, "text_input": "Hi"}))
        assert "model_versions" not in orjson.loads(short)
        await gateway.close()


async def test_without_room_for_two_weights_are_exchanged_in_place(serve, run):
    old = commit_llm(run, 1, 7)
    publish(run, "stable", 1)
    async with serve('swap = "auto"\nprobation_s = 60', how=build_exchanging) as replica:
        gateway = await Caller.connect(replica.address)
        await gateway.state("ready")
        before, _ = await gateway.text()
        stream = gateway.call("chat", {**LONG, "seed": 1})
        await gateway.until(lambda: gateway.pieces(stream))
        new = commit_llm(run, 2, 8)
        publish(run, "stable", 2)
        await gateway.serves(new.version)
        assert events((await gateway.reply(stream))[0])[-1] == "[DONE]", "it went on"
        after, version = await gateway.text()
        assert version == new.version and after != before
        assert gateway.statuses[-1].versions == (new.version,)
        publish(run, "stable", 1)  # back, from the host's memory
        await gateway.serves(old.version)
        assert await gateway.text() == (before, old.version)
        commit_llm(run, 3, 13)
        publish(run, "stable", 3)
        await gateway.until(lambda: gateway.statuses[-1].refused)
        assert await gateway.text() == (before, old.version)
        await gateway.close()


async def test_an_exchange_that_stops_half_way_needs_another_process(serve, run):
    commit_llm(run, 1, 7)
    publish(run, "stable", 1)
    async with serve('swap = "auto"', how=build_exchanging) as replica:
        gateway = await Caller.connect(replica.address)
        await gateway.state("ready")
        commit_llm(run, 2, 99)
        publish(run, "stable", 2)
        failed = await gateway.state("failed")
        assert "exchanged in part: out of memory" in failed.reason
        assert replica.broken.is_set()
        await gateway.close()


async def test_versions_that_are_kept_can_be_pinned_and_rolled_back_to(serve, run):
    old = commit_llm(run, 1, 7)
    publish(run, "stable", 1)
    async with serve('swap = "auto"\nprobation_s = 60\nfinish_s = 0') as replica:
        gateway = await Caller.connect(replica.address)
        await gateway.state("ready")
        text, _ = await gateway.text()
        new = commit_llm(run, 2, 8)
        publish(run, "stable", 2)
        status = await gateway.serves(new.version)
        assert set(status.versions) == {old.version, new.version}
        assert await gateway.text(version=old.version) == (text, old.version)
        await gateway.control("rollback", version=new.version)
        await gateway.serves(old.version)
        assert await gateway.text() == (text, old.version)
        await gateway.until(lambda: gateway.statuses[-1].versions == (old.version,))
        assert new.version in gateway.statuses[-1].refused
        await gateway.close()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda run: commit_llm(run, 2, 13), "not finite"),
        (lambda run: commit_llm(run, 2, 8, vocab_size=40), "vocab_size 40"),
        (lambda run: commit_llm(run, 2, 8, template="{% for %}"), "no Jinja template"),
        (
            lambda run: commit_llm(run, 2, 8, Probe({"prompt": [1, 2]}, {"tokens": [0, 0, 0]})),
            "does not generate what it did",
        ),
        (
            lambda run: commit_llm(run, 2, 8, Probe({"x": [1]}, {"y": [1]})),
            "has a prompt and tokens",
        ),
    ],
)
async def test_a_version_that_is_no_good_never_serves(serve, run, make, said):
    old = commit_llm(run, 1, 7)
    publish(run, "stable", 1)
    async with serve('swap = "auto"') as replica:
        gateway = await Caller.connect(replica.address)
        await gateway.state("ready")
        bad = make(run)
        publish(run, "stable", 2)
        await gateway.until(lambda: bad.version in gateway.statuses[-1].refused)
        assert said in gateway.statuses[-1].reason
        assert gateway.statuses[-1].version == old.version and (await gateway.text())[0]
        third = commit_llm(run, 3, 9)
        publish(run, "stable", 3)
        await gateway.serves(third.version)
        await gateway.close()


async def test_another_tokenizer_needs_another_process(serve, run):
    """What waits was tokenised for the version before: it must not be answered by this one."""
    old = commit_llm(run, 1, 7)
    publish(run, "stable", 1)
    async with serve('swap = "auto"') as replica:
        gateway = await Caller.connect(replica.address)
        await gateway.state("ready")
        other = commit_llm(run, 2, 8, added="<x>", vocab_size=SIZE)
        publish(run, "stable", 2)
        await gateway.until(lambda: gateway.statuses[-1].crowded == other.version)
        assert "its tokenizer is not that" in gateway.statuses[-1].reason
        assert gateway.statuses[-1].version == old.version and (await gateway.text())[0]
        await gateway.close()


async def test_a_first_version_that_is_no_good_makes_way_for_the_next(serve, run):
    commit_llm(run, 1, 13)
    publish(run, "stable", 1)
    async with serve('swap = "auto"') as replica:
        gateway = await Caller.connect(replica.address)
        status = await gateway.state("failed")
        assert "not finite" in status.reason
        good = commit_llm(run, 2, 7)
        publish(run, "stable", 2)
        await gateway.serves(good.version)
        assert (await gateway.text())[1] == good.version
        await gateway.close()


async def test_a_probe_that_holds(serve, run):
    network_tokens = []
    first = commit_llm(run, 1, 7)
    publish(run, "stable", 1)
    async with serve('swap = "auto"\nprobation_s = 0') as replica:
        gateway = await Caller.connect(replica.address)
        await gateway.state("ready")
        network_tokens, logprobs = replica._machine.ask(first.version, [1, 2, 3], 4, lambda: False)
        probe = Probe({"prompt": [1, 2, 3]}, {"tokens": network_tokens, "logprobs": logprobs})
        second = commit_llm(run, 2, 7, probe)
        publish(run, "stable", 2)
        await gateway.serves(second.version)
        await gateway.close()


async def test_draining_answers_what_it_took(serve, run):
    commit_llm(run, 1, 7)
    publish(run, "stable", 1)
    async with serve() as replica:
        gateway = await Caller.connect(replica.address)
        await gateway.state("ready")
        id = gateway.call("chat", LONG)
        await gateway.until(lambda: bool(gateway.pieces(id)))
        await gateway.control("drain")
        assert gateway.statuses[-1].state == "draining" and not replica.settled
        fault = await gateway.fault(gateway.call("chat", HI))
        assert fault.code == "not_ready"
        data, _ = await gateway.reply(id)
        assert events(data)[-1] == "[DONE]"
        await eventually(lambda: replica.settled)
        await gateway.control("undrain")
        assert (await gateway.text())[0]
        await gateway.close()


async def test_what_is_owed_at_the_end_is_answered(serve, run):
    commit_llm(run, 1, 7)
    publish(run, "stable", 1)
    async with serve() as replica:
        gateway = await Caller.connect(replica.address)
        await gateway.state("ready")
        begun, waits = gateway.call("chat", LONG), gateway.call("chat", {**LONG, "stream": False})
        await gateway.until(lambda: bool(gateway.pieces(begun)))
        await replica.close()
        await gateway.closed.wait()
        error = events(b"".join(data for _, data in gateway.pieces(begun)))[-2]
        assert error["error"]["code"] == "not_ready"
        assert (await gateway.fault(waits)).code == "not_ready"


async def test_steps_that_fail_fail_their_calls_and_no_others(serve, run, trap):
    commit_llm(run, 1, 7)
    publish(run, "stable", 1)
    async with serve() as replica:
        gateway = await Caller.connect(replica.address)
        await gateway.state("ready")

        def boom(salt):
            raise RuntimeError("no device today")

        trap(boom)
        fault = await gateway.fault(gateway.call("chat", HI))
        assert (fault.status, fault.code) == (500, "model_error")
        assert "no device today" in fault.message
        trap(None)
        assert (await gateway.text())[0]
        crash = next(fields for event, fields in replica.log if event == "device.crashed")
        assert "no device today" in crash["error"] and "test_replica.py" in crash["where"]
        assert not replica.broken.is_set()
        await gateway.close()


async def test_a_version_that_fails_its_calls_is_rolled_back(serve, run, trap):
    old = commit_llm(run, 1, 7)
    publish(run, "stable", 1)
    async with serve('swap = "auto"\nprobation_s = 60') as replica:
        gateway = await Caller.connect(replica.address)
        await gateway.state("ready")
        new = commit_llm(run, 2, 8)
        publish(run, "stable", 2)
        await gateway.serves(new.version)

        def boom(salt):
            if salt == 8:
                raise RuntimeError("not with these weights")

        trap(boom)
        failed = 0
        while gateway.statuses[-1].version == new.version:
            failed += (await gateway.answer_of(gateway.call("chat", HI))).kind == Kind.ERROR
            assert failed < 60
        await gateway.serves(old.version)
        assert failed >= 20 and (await gateway.text())[1] == old.version
        assert "of its requests failed" in gateway.statuses[-1].reason
        await gateway.close()


async def test_a_version_that_turns_slow_is_rolled_back(serve, run, trap):
    old = commit_llm(run, 1, 7)
    publish(run, "stable", 1)
    async with serve('swap = "auto"\nprobation_s = 60') as replica:
        gateway = await Caller.connect(replica.address)
        await gateway.state("ready")
        # Long enough for the time of a token to be one.
        asked = {**HI, "max_tokens": 10, "ignore_eos": True}
        for _ in range(3):
            await gateway.reply(gateway.call("chat", asked))
        new = commit_llm(run, 2, 8)
        publish(run, "stable", 2)
        await gateway.serves(new.version)
        trap(lambda salt: time.sleep(0.01) if salt == 8 else None)
        for _ in range(60):
            if (await gateway.reply(gateway.call("chat", asked)))[1] == old.version:
                break
        await gateway.serves(old.version)
        assert "times as long as before" in gateway.statuses[-1].reason
        rollback = next(fields for event, fields in replica.log if event == "reload.rollback")
        assert rollback["version"] == new.version
        await gateway.close()


async def test_a_device_that_hangs_is_told_of_and_comes_back(serve, run, trap):
    commit_llm(run, 1, 7)
    publish(run, "stable", 1)
    async with serve("hang_s = 0.1") as replica:
        gateway = await Caller.connect(replica.address)
        await gateway.state("ready")
        opened = threading.Event()
        trap(lambda salt: opened.wait(30) and None)
        id = gateway.call("chat", HI)
        status = await gateway.state("failed")
        assert "a step on the device has run for" in status.reason
        fault = await gateway.fault(gateway.call("chat", HI))
        assert fault.code == "not_ready" and fault.retryable
        opened.set()
        await gateway.state("ready")
        assert (await gateway.reply(id))[0]
        await gateway.close()


@pytest.mark.parametrize("weights", ["auto", "int8"])
async def test_a_decoder_from_its_checkpoint_says_what_it_says_by_itself(serve, run, weights):
    decoder = commit_decoder(run, 1)
    publish(run, "stable", 1)
    library = byte_level()
    prompt = library.encode("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n").ids
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(12):
            tokens.append(int(decoder(torch.tensor([tokens]))[0, -1].argmax()))
    async with serve(how=None, weights=weights, threads=1) as replica:
        gateway = await Caller.connect(replica.address)
        ready = await gateway.state("ready")
        # Its widths are none of the native step's, and operators hear of that.
        assert "torch computes, several times slower" in ready.reason
        assert [fields["reason"] for event, fields in replica.log if event == "slow"] == [
            ready.reason
        ]
        text, _ = await gateway.text()
        expected = text_model().tokenizer.decode(tokens[len(prompt) :])
        assert text == expected.split("<|im_end|>")[0] or weights == "int8"
        assert text
        await gateway.close()
