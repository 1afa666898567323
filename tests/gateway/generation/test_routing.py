"""Which replica gets a call: by work in tokens, by what it has cached, by session, by version."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import orjson
import pytest

from tests.gateway.fake_llm import FakeLLM, completion
from tests.gateway.fakes import until
from tests.gateway.generation.fakes import serving

LLM = 'kind = "llm"\n'


def ask(prompt: str, **more) -> bytes:
    return orjson.dumps({"messages": [{"role": "user", "content": prompt}], "model": "m", **more})


async def answer(call):
    call.whole(completion("ok"), usage=(len(call.body) // 4, 4, 0))


def cached(call) -> int:
    """As an engine would: what this replica has seen of the prompt before, in tokens."""
    seen = getattr(call.replica, "prompts", [])
    call.replica.prompts = [*seen, call.body]
    best = 0
    for other in seen:
        same = next((i for i, (a, b) in enumerate(zip(call.body, other, strict=False)) if a != b),
                    min(len(call.body), len(other)))  # fmt: skip
        best = max(best, same)
    return best // 4


async def answer_cached(call):
    call.whole(completion("ok"), usage=(len(call.body) // 4, 4, cached(call)))


async def served_by(gateway, body, fields="") -> str:
    reply = await gateway.post(body, fields=fields)
    assert reply.status == 200, reply.body
    return reply.header("x-served-by")


def three(tmp_path, script):
    return [FakeLLM(tmp_path / name, script) for name in "abc"]


async def test_a_conversation_returns_to_where_its_prompt_is_cached(tmp_path):
    async with serving(tmp_path, *three(tmp_path, answer_cached), model=LLM) as gateway:
        prompts = {name: f"{name} says " * 400 for name in "uvwxyz"}
        homes = {name: await served_by(gateway, ask(text)) for name, text in prompts.items()}
        for turn in range(3):
            for name in prompts:
                prompts[name] += f"and turn {turn} says something more of {name}. " * 20
                assert await served_by(gateway, ask(prompts[name])) == homes[name]
        assert gateway.model.calls.calls.tokens["cached"] > 0


async def test_a_loaded_replica_is_left_though_it_has_the_prompt(tmp_path):
    go = asyncio.Event()

    async def script(call):
        if b"busy" in call.body:
            await go.wait()
        await answer_cached(call)

    async with serving(tmp_path, *three(tmp_path, script)[:2], model=LLM) as gateway:
        prompt = "a prompt that is shared " * 100
        home = await served_by(gateway, ask(prompt))
        assert await served_by(gateway, ask(prompt)) == home
        other = {"r0": "r1", "r1": "r0"}[home]
        gateway.fleet.set_weight(other, 1e-6)
        busy = await gateway.post(ask("busy " * 10_000), complete=False)
        await until(lambda: gateway.counters()["live"] == 1)
        gateway.fleet.set_weight(other, 1.0)
        assert await served_by(gateway, ask(prompt)) == other
        go.set()
        await until(lambda: busy.complete)


async def test_a_lease_weighs_what_is_still_to_come_of_its_call(tmp_path):
    step = asyncio.Semaphore(0)

    async def script(call):
        await step.acquire()
        call.delta("x")
        await step.acquire()
        call.done(usage=(1000, 30, 0))

    async with serving(tmp_path, FakeLLM(tmp_path / "a", script), model=LLM) as gateway:
        load = gateway.model.replicas[0].calls
        body = ask("word " * 800, max_tokens=30, stream=True)
        reply = await gateway.post(body, complete=False)
        await until(lambda: load.in_flight)
        assert load.work == pytest.approx(len(body) / 4 + 30)
        step.release()
        await until(lambda: reply.body)
        assert load.work == pytest.approx(30)
        step.release()
        await until(lambda: reply.complete)
        assert load.work == 0.0


async def test_a_replica_that_others_keep_busy_gets_less(tmp_path, monkeypatch):
    monkeypatch.setattr("gateway.generation.seen.STALE_S", 1e9)
    fakes = three(tmp_path, answer)
    async with serving(tmp_path, *fakes, model=LLM) as gateway:
        idle = {"prompt_tokens": 0.0, "output_tokens": 0.0}
        for fake in fakes:
            fake.say(load=idle)
        fakes[1].say(load={"prompt_tokens": 50_000.0, "output_tokens": 4000.0})
        await until(lambda: (gateway.model.replicas[1].status.load or idle)["prompt_tokens"])
        homes = Counter([await served_by(gateway, ask(f"{n}")) for n in range(30)])
        assert homes["r1"] == 0 and min(homes["r0"], homes["r2"]) > 3
        fakes[1].say(load=idle)
        await until(lambda: not gateway.model.replicas[1].status.load["prompt_tokens"])
        homes = Counter([await served_by(gateway, ask(f"{n}")) for n in range(30)])
        assert min(homes.values()) > 2 and len(homes) == 3


async def test_a_final_piece_says_what_is_left_too(tmp_path, monkeypatch):
    monkeypatch.setattr("gateway.generation.seen.STALE_S", 1e9)

    async def script(call):
        load = {"prompt_tokens": 9e4, "output_tokens": 0.0} if call.replica is fakes[0] else {}
        call.piece(b"{}", final=True, type="application/json", load=load)

    fakes = three(tmp_path, script)[:2]
    async with serving(tmp_path, *fakes, model=LLM) as gateway:
        gateway.fleet.set_weight("r1", 1e-6)
        await served_by(gateway, ask("x"))
        gateway.fleet.set_weight("r1", 1.0)
        assert {await served_by(gateway, ask(f"{n}")) for n in range(10)} == {"r1"}


@pytest.mark.parametrize(
    ("fields", "more"),
    [
        ("x-session-id: {}\r\n", {}),
        ("cookie: session={}\r\n", {}),
        ("", {"prompt_cache_key": "ID"}),
        ("", {"user": "ID"}),
        ("", {"conversation": {"id": "ID"}}),
    ],
)
async def test_a_session_keeps_its_replica(tmp_path, fields, more):
    routing = LLM + 'routing = "session"'
    async with serving(tmp_path, *three(tmp_path, answer), model=routing) as gateway:

        async def home(session: str) -> str:
            said = orjson.loads(orjson.dumps(more).replace(b"ID", session.encode()))
            return await served_by(gateway, ask("hi", **said), fields.format(session))

        homes = {f"s{n}": await home(f"s{n}") for n in range(12)}
        assert len(set(homes.values())) == 3
        assert {session: await home(session) for session in homes} == homes


async def test_equal_prompts_share_a_replica_where_prefixes_route(tmp_path):
    routing = LLM + 'routing = "prefix"'
    async with serving(tmp_path, *three(tmp_path, answer), model=routing) as gateway:
        for name in "uvwxyz":
            prompt = f"{name} was here " * 300
            homes = {await served_by(gateway, ask(prompt + "x" * n)) for n in range(4)}
            assert len(homes) == 1


@pytest.mark.parametrize("routing", ["wrr", "random", "p2c", "least-connections", "predictive"])
async def test_every_other_way_of_routing_serves_too(tmp_path, routing):
    keys = LLM + f'routing = "{routing}"'
    async with serving(tmp_path, *three(tmp_path, answer), model=keys) as gateway:
        homes = Counter([await served_by(gateway, ask(f"{n}")) for n in range(45)])
        assert len(homes) == 3


async def test_a_routing_is_changed_while_calls_run(tmp_path):
    go = asyncio.Event()

    async def script(call):
        await go.wait()
        await answer(call)

    async with serving(tmp_path, *three(tmp_path, script), model=LLM) as gateway:
        replies = [await gateway.post(ask("x"), complete=False) for _ in range(6)]
        await until(lambda: gateway.counters()["live"] == 6)
        gateway.model.reconfigure(replace(gateway.model.config, routing="session"))
        go.set()
        await until(lambda: all(reply.complete for reply in replies))
        assert all(reply.status == 200 for reply in replies)


async def test_a_pinned_version_is_served_by_who_holds_it(tmp_path):
    old, new = three(tmp_path, answer)[:2]
    old.version, old.versions = "1-a", ("1-a",)
    new.version, new.versions = "2-b", ("2-b", "1-a")
    async with serving(tmp_path, old, new, model=LLM) as gateway:
        for pinned, holders in (("1-a", {"r0", "r1"}), ("2-b", {"r1"}), ("2", {"r1"})):
            fields = f"x-model-version: {pinned}\r\n"
            homes = {await served_by(gateway, ask(f"{n}"), fields) for n in range(12)}
            assert homes == holders
        reply = await gateway.post(ask("x"), fields="x-model-version: 9-z\r\n")
        error = orjson.loads(reply.body)["error"]
        assert (reply.status, error["code"]) == (404, "not_found")
        assert error["param"] == "x-model-version"


async def test_a_canary_gets_its_share_and_sessions_keep_their_version(tmp_path):
    async def script(call):
        call.whole(completion("ok"), usage=(10, 10, 0))

    stable, canary = three(tmp_path, script)[:2]
    canary.version, canary.versions, canary.channel = "2-b", ("2-b",), "canary"
    keys = LLM + '[models.canary]\nchannel = "canary"\nshare = 0.5\n'
    async with serving(tmp_path, stable, canary, model=keys) as gateway:

        async def version(session: str) -> str:
            reply = await gateway.post(ask("x"), fields=f"x-session-id: {session}\r\n")
            return reply.header("x-model-version")

        versions = {f"s{n}": await version(f"s{n}") for n in range(30)}
        assert len(set(versions.values())) == 2
        assert {session: await version(session) for session in versions} == versions
        compared = gateway.model.measures.by_version
        assert {name: m.failed for name, m in compared.items()} == {"1-a": 0, "2-b": 0}
        assert sum(sum(m.latency.counts) for m in compared.values()) == 60


async def test_a_version_that_goes_away_ends_what_waits_for_it_alone(tmp_path):
    go = asyncio.Event()

    async def script(call):
        await go.wait()
        await answer(call)

    fake = FakeLLM(tmp_path / "a", script)
    fake.slots, fake.versions = 2, ("1-a", "0-z")
    async with serving(tmp_path, fake, model=LLM) as gateway:
        running = [await gateway.post(ask("x"), complete=False) for _ in range(2)]
        await until(lambda: len(fake.calls) == 2)
        pinned = await gateway.post(ask("x"), fields="x-model-version: 0-z\r\n", complete=False)
        plain = await gateway.post(ask("x"), complete=False)
        await until(lambda: gateway.model.status()["waiting"] == 2)
        fake.say(version="2-b", versions=("2-b", "1-a"))
        await until(lambda: pinned.complete)
        assert pinned.status == 404
        go.set()
        await until(lambda: plain.complete and all(reply.complete for reply in running))
        assert plain.header("x-model-version") == "2-b"
