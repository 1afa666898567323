"""Bodies on their way: event streams, silence, slow clients, slow upstreams, deadlines."""

from __future__ import annotations

import asyncio

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.relay.events import LONGEST, EventGate
from tests.gateway.relay.fakes import Upstream, relaying, until

OPENAI = 'api = "openai"\n'
CHAT = {"method": "POST", "body": b'{"model":"m","stream":true}'}


async def test_events_are_passed_on_one_by_one():
    step = asyncio.Semaphore(0)

    async def script(call):
        await call.start()
        for number in range(3):
            await call.chunk(b"data: %d\n\n" % number)
            await step.acquire()
        await call.end()

    async with relaying(Upstream("a", script)) as gateway:
        reply = await gateway.ask(complete=False)
        for number in range(3):
            await until(lambda n=number: reply.body.endswith(b"data: %d\n\n" % n))
            assert not reply.complete
            step.release()
        await until(lambda: reply.complete)
        assert reply.header("content-type") == "text/event-stream"


async def test_half_an_event_waits_for_its_other_half():
    go = asyncio.Event()

    async def script(call):
        await call.start()
        await call.chunk(b"data: 1\n\ndata: ")
        await go.wait()
        await call.chunk(b"2\n\n")
        await call.end()

    async with relaying(Upstream("a", script)) as gateway:
        reply = await gateway.ask(complete=False)
        await until(lambda: reply.body == b"data: 1\n\n")
        go.set()
        await until(lambda: reply.complete)
        assert reply.body == b"data: 1\n\ndata: 2\n\n"


async def test_a_silent_event_stream_gets_comments_and_other_bodies_none():
    go = asyncio.Event()

    async def script(call):
        await call.start("" if call.target == "/plain" else "content-type: text/event-stream\r\n")
        await call.chunk(b"data: 1\n\n")
        await go.wait()
        await call.chunk(b"data: 2\n\n")
        await call.end()

    async with relaying(Upstream("a", script), relay='api = "web"\nheartbeat_ms = 60') as gateway:
        plain = await gateway.ask("/plain", complete=False)
        reply = await gateway.ask(complete=False)
        await until(lambda: reply.body.count(b":\n\n") >= 2)
        go.set()
        await until(lambda: reply.complete and plain.complete)
        assert reply.body.replace(b":\n\n", b"") == b"data: 1\n\ndata: 2\n\n" == plain.body


@pytest.mark.parametrize("half", [b"", b'data: {"broken'])
async def test_a_stream_that_breaks_ends_in_an_error_event(half):
    async def script(call):
        await call.start()
        await call.chunk(b'data: {"n":1}\n\n' + half)
        await until(lambda: client.reply.body)
        call.die()

    async with relaying(Upstream("a", script), relay=OPENAI) as gateway:
        client = await gateway.connect()
        reply = await gateway.ask("/v1/chat/completions", client=client, **CHAT)
        events = reply.body.split(b"\n\n")
        assert events[0] == b'data: {"n":1}' and events[2:] == [b""]
        error = orjson.loads(events[1].removeprefix(b"data: "))["error"]
        assert error["code"] == "bad_replica" and error["type"] == "server_error"
        assert "closed" in error["message"] or "reset" in error["message"].lower()
        await until(lambda: client.closed)
        assert gateway.counters()["failed"] == 1


async def test_a_web_stream_that_breaks_ends_in_a_named_event():
    async def script(call):
        await call.start()
        await call.chunk(b"data: 1\n\n")
        await until(lambda: client.reply.body)
        call.die()

    async with relaying(Upstream("a", script)) as gateway:
        client = await gateway.connect()
        reply = await gateway.ask(client=client)
        assert b'\n\nevent: error\ndata: {"error":' in reply.body


async def test_a_slow_client_holds_the_upstream_back_within_bounded_memory():
    sent = 0

    async def script(call):
        nonlocal sent
        await call.start("")
        for _ in range(400):
            await call.chunk(b"x" * 100_000)
            sent += 100_000
        await call.end()

    async with relaying(Upstream("a", script)) as gateway:
        client = await gateway.connect()
        await gateway.ask(client=client, complete=False)
        await until(lambda: client.reply.status)
        client.transport.pause_reading()
        before = -1
        while before != sent:  # until it stands still
            before = sent
            await asyncio.sleep(0.1)
        # The sockets' buffers and ours; nothing near the whole.
        assert sent < 30_000_000
        client.transport.resume_reading()
        await until(lambda: client.reply.complete)
        assert len(client.reply.body) == 40_000_000


async def test_a_slow_upstream_holds_the_client_back():
    go = asyncio.Event()

    async def script(call):
        await go.wait()
        body = await call.reader.readexactly(int(call.header("content-length")))
        await call.answer(str(len(body)).encode())

    upstream = Upstream("a", script)
    upstream.reads_bodies = False
    async with relaying(upstream) as gateway:
        client = await gateway.connect()
        size = 40_000_000
        head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size
        client.transport.write(head + b"y" * size)
        left, before = client.transport.get_write_buffer_size, -1
        while before != left():
            before = left()
            await asyncio.sleep(0.1)
        assert before > 10_000_000
        go.set()
        await until(lambda: client.reply.complete)
        assert client.reply.body == str(size).encode()


async def test_the_deadline_goes_on_to_the_upstream_and_ends_the_request():
    async def script(call):
        await call.reader.read(1)

    upstream = Upstream("a", script)
    async with relaying(upstream) as gateway:
        reply = await gateway.ask(fields="x-deadline-ms: 120\r\n")
        assert reply.status == 504 and b"deadline" in reply.body
        assert 0 < int(upstream.calls[0].header("x-deadline-ms")) <= 120
        assert gateway.pool.measures.codes["deadline_exceeded"] == 1
        assert gateway.pool.replicas[0].breaker.closed


@pytest.mark.parametrize(
    "fields, most", [("", 600_000), ("x-stainless-read-timeout: 30\r\n", 30_000)]
)
async def test_the_least_of_all_limits_is_the_deadline(fields, most):
    upstream = Upstream("a")
    async with relaying(upstream) as gateway:
        await gateway.ask(fields=fields)
        assert most - 1000 < int(upstream.calls[0].header("x-deadline-ms")) <= most
    routes = '[[routes]]\npath = "/"\nmodel = "m"\ntimeout_ms = 9000\n'
    upstream = Upstream("a")
    async with relaying(upstream, routes=routes) as gateway:
        await gateway.ask(fields=fields)
        assert 8000 < int(upstream.calls[0].header("x-deadline-ms")) <= 9000


@pytest.mark.parametrize("phase", ["head_ms", "first_ms", "idle_ms"])
async def test_each_phase_has_its_own_limit(phase):
    async def script(call):
        if phase != "head_ms":
            await call.start("")
        if phase == "idle_ms":
            await call.chunk(b"x")
        await call.reader.read(1)

    async with relaying(Upstream("a", script), relay=f'api = "web"\n{phase} = 60') as gateway:
        client = await gateway.connect()
        reply = await gateway.ask(client=client)
        assert (reply.status == 504) if phase == "head_ms" else client.closed
        assert gateway.pool.measures.codes["replica_timeout"] == 1


async def test_a_stream_that_goes_on_outlives_the_idle_limit():
    async def script(call):
        await call.start("")
        for _ in range(6):
            await call.chunk(b"x")
            await asyncio.sleep(0.05)
        await call.end()

    async with relaying(Upstream("a", script), relay='api = "web"\nidle_ms = 200') as gateway:
        assert (await gateway.ask()).body == b"x" * 6


async def test_a_client_that_leaves_a_silent_stream_politely_is_noticed():
    async def script(call):
        await call.start()
        await call.chunk(b"data: 1\n\n")
        if await call.reader.read(1) == b"":
            call.upstream.broken += 1

    upstream = Upstream("a", script)
    async with relaying(upstream) as gateway:
        client = await gateway.connect()
        await gateway.ask(client=client, complete=False)
        await until(lambda: client.reply.body)
        client.transport.close()
        await until(lambda: upstream.broken)
        assert gateway.counters()["cancelled"] == 1


@given(
    st.lists(
        st.sampled_from(["data: x", "event: y\ndata: z", ": c", "data: " + "long" * 40]), min_size=1
    ),
    st.sampled_from(["\n", "\r\n"]),
    st.lists(st.integers(1, 60), min_size=1),
)
def test_an_event_gate_changes_nothing_and_lets_only_whole_events_through(events, end, cuts):
    stream = "".join(event.replace("\n", end) + end + end for event in events).encode()
    gate, out, at, turn = EventGate(), b"", 0, 0
    while at < len(stream):
        size = cuts[turn % len(cuts)]
        out += gate.feed(stream[at : at + size])
        assert gate.whole
        assert not out or out.endswith((b"\n\n", b"\n\r\n"))
        at, turn = at + size, turn + 1
    assert out + gate.finish() == stream
    assert out == stream


def test_an_endless_event_is_not_kept():
    gate = EventGate()
    data = b"data: " + b"x" * LONGEST
    assert gate.feed(data) == data and not gate.whole
    assert gate.feed(b"y\n\n") == b"y\n\n" and gate.whole
