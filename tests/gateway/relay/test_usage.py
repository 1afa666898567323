"""Tokens of relayed answers: reserved, read on the way, settled; and what clients see of that."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admit import Admittance
from gateway.config import parse
from gateway.relay.usage import USUAL_ANSWER, Meter, reserve
from gateway.tenants import Tenants
from tests.gateway.relay.fakes import Upstream, relaying, until

KEY = "a-key-for-these-tests"
DIGEST = hashlib.sha256(KEY.encode()).hexdigest()
CHAT = {"model": "chat", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 20}


def event(**fields) -> bytes:
    return b"data: " + orjson.dumps(fields) + b"\n\n"


class FakeVisit:
    tokens: float | None = None


def test_what_is_reserved_is_the_prompt_and_the_longest_answer():
    body = orjson.dumps({**CHAT, "n": 3})
    found = reserve(body, len(body), complete=True)
    assert found.tokens == found.prompt + 60 and found.prompt == len(body) / 4
    assert found.body == body and not found.strips
    body = orjson.dumps({"model": "chat", "messages": []})
    found = reserve(body, len(body), complete=True)
    assert found.tokens == found.prompt + USUAL_ANSWER
    body = orjson.dumps({"model": "e", "input": "text"})
    assert reserve(body, len(body), complete=True).tokens == len(body) / 4
    assert reserve(b"{", 4000, complete=False).tokens == 1000 + USUAL_ANSWER


def test_a_stream_is_asked_for_its_usage_unless_the_client_does():
    body = orjson.dumps({**CHAT, "stream": True})
    found = reserve(body, len(body), complete=True)
    assert found.strips
    assert orjson.loads(found.body)["stream_options"] == {"include_usage": True}
    asked = orjson.dumps({**CHAT, "stream": True, "stream_options": {"include_usage": True}})
    assert reserve(asked, len(asked), complete=True)[2:] == (asked, False)


@given(st.binary(max_size=200), st.integers(-2, 500), st.booleans())
def test_any_body_is_passed_on_with_some_estimate(body, length, complete):
    found = reserve(body, length, complete=complete)
    assert found.tokens >= found.prompt >= 0
    assert found.strips or found.body == body


@given(st.integers(0, 10**6), st.integers(1, 200))
def test_a_total_is_found_wherever_it_is_cut(total, cut):
    visit = FakeVisit()
    meter = Meter(visit, 7.0, strips=False)
    body = orjson.dumps({"choices": ["x" * 100], "usage": {"total_tokens": total}})
    assert meter.piece(body[:cut], events=False) + meter.piece(body[cut:], events=False) == body
    assert visit.tokens == total


def test_only_the_usage_that_nobody_asked_for_is_taken_out():
    for strips in (True, False):
        visit = FakeVisit()
        meter = Meter(visit, 7.0, strips=strips)
        assert visit.tokens == 0.0
        first = event(choices=[{"delta": {"content": "a"}}], usage=None)
        last = event(choices=[], usage={"total_tokens": 12})
        assert meter.piece(first, events=True) == first
        assert visit.tokens == 8.0  # as far as it has come
        done = b"data: [DONE]\n\n"
        assert meter.piece(last + done, events=True) == (done if strips else last + done)
        assert visit.tokens == 12.0


async def stream(call):
    options = orjson.loads(call.body).get("stream_options")
    await call.start()
    for word in ("a", "b"):
        await call.chunk(event(choices=[{"delta": {"content": word}}]))
    if options:
        await call.chunk(event(choices=[], usage={"total_tokens": 30}))
    await call.chunk(b"data: [DONE]\n\n")
    await call.end()


async def whole(call):
    await call.answer(orjson.dumps({"choices": [], "usage": {"total_tokens": 30}}))


async def broken(call):
    await call.answer(b"no", status="400 Bad Request")


async def hanging(call):
    await call.start()
    await call.chunk(event(choices=[{"delta": {"content": "a"}}]))
    await asyncio.Event().wait()


FIELDS = f"authorization: Bearer {KEY}\r\ncontent-type: application/json\r\n"
KEYS = f'[[keys]]\nname = "app"\nkey_sha256 = ["{DIGEST}"]\ntokens_per_minute = 600\nburst_s = 60\n'


def admit(relay):
    """The relay with the key of KEYS; its tenant."""
    model = '[[models]]\nname = "m"\n[[models.replicas]]\nname = "r"\naddress = "tcp:h:1"\n'
    config = parse(model + KEYS, Path("/srv/serve.toml"), {})
    made = Admittance(Tenants(asyncio.get_running_loop().time), relay.fleet.surface)
    made.apply(config, relay.lane)
    return made.tenants["app"]


def chatting(script):
    upstream = Upstream("u", script)
    return relaying(upstream, relay='names = ["chat"]', routes="")


async def chat(relay, client=None, complete=True, **more):
    return await relay.ask(
        "/v1/chat/completions",
        method="POST",
        body=orjson.dumps({**CHAT, **more}),
        fields=FIELDS,
        client=client,
        complete=complete,
    )


@pytest.mark.parametrize(
    ("script", "streams", "status", "used"),
    [(whole, False, 200, 30), (stream, True, 200, 30), (broken, False, 400, 0)],
)
async def test_tokens_are_settled_with_what_was_used(script, streams, status, used):
    async with chatting(script) as relay:
        tenant = admit(relay)
        client = await relay.connect()
        for number in (1, 2, 3):
            reply = await chat(relay, client, stream=streams)
            assert reply.status == status
            assert b"usage" not in reply.body or not streams
            assert (tenant.admitted, tenant.live, tenant.tokens) == (number, 0, number * used)


async def test_a_spent_minute_is_refused_with_when_to_come_back():
    async with chatting(whole) as relay:
        admit(relay)
        assert (await chat(relay, max_tokens=560)).status == 200
        reply = await chat(relay, max_tokens=590)
        assert reply.status == 429 and reply.header("x-should-retry") == "true"
        # 30 were used of 600 which fill at 10 a second.
        assert 0 < int(reply.header("retry-after-ms")) <= 6000
        assert orjson.loads(reply.body)["error"]["code"] == "rate_limit_exceeded"
        assert relay.counters()["accepted"] == 1


async def test_a_client_that_leaves_pays_for_what_it_got():
    async with chatting(hanging) as relay:
        tenant = admit(relay)
        client = await relay.connect()
        reply = await chat(relay, client, complete=False, stream=True)
        await until(lambda: reply.body)
        assert tenant.live == 1
        client.transport.abort()
        await until(lambda: tenant.live == 0)
        size = len(orjson.dumps({**CHAT, "stream": True}))
        assert tenant.tokens == pytest.approx(size / 4 + 1)
