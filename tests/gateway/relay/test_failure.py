"""Upstreams that refuse, die, stall and talk nonsense: who is asked next, and what clients see."""

from __future__ import annotations

import asyncio

import pytest

from gateway.relay import transit
from gateway.relay.endpoint import Endpoint
from gateway.relay.health import ask_health
from gateway.relay.pool import ConnectionPool
from tests.gateway.relay.fakes import Upstream, relaying, until


async def dies(call):
    call.die()


def once(script, then):
    """The first call of all upstreams that share it goes by `script`."""
    seen = []

    async def run(call):
        seen.append(call)
        await (script if len(seen) == 1 else then)(call)

    return run


async def named(call):
    await call.answer(call.upstream.name.encode())


async def test_a_request_whose_upstream_dies_is_answered_by_another():
    script = once(dies, named)
    upstreams = Upstream("a", script), Upstream("b", script)
    async with relaying(*upstreams) as gateway:
        reply = await gateway.ask()
        assert reply.status == 200 and reply.body in (b"a", b"b")
        assert sum(len(u.calls) for u in upstreams) == 2
        assert gateway.pool.measures.retried == 1


async def test_a_post_that_may_have_been_done_is_not_sent_twice():
    script = once(dies, named)
    upstreams = Upstream("a", script), Upstream("b", script)
    async with relaying(*upstreams) as gateway:
        reply = await gateway.ask(method="POST", body=b"buy")
        assert reply.status == 502 and reply.header("x-should-retry") == "false"
        assert sum(len(u.calls) for u in upstreams) == 1
        again = await gateway.ask(method="POST", body=b"buy", fields="idempotency-key: 1\r\n")
        assert again.status == 200


async def test_inference_is_repeatable():
    script = once(dies, named)
    upstreams = Upstream("a", script), Upstream("b", script)
    async with relaying(*upstreams, relay='api = "openai"') as gateway:
        assert (await gateway.ask(method="POST", body=b"x")).status == 200


async def test_killed_upstreams_cost_no_request():
    upstreams = [Upstream(name, named) for name in "abc"]
    async with relaying(*upstreams) as gateway:
        clients = [await gateway.connect() for _ in range(16)]
        statuses = []

        async def keep_asking(client):
            for number in range(30):
                reply = await gateway.ask(f"/{number}", client=client)
                statuses.append(reply.status)

        asking = asyncio.gather(*map(keep_asking, clients))
        await until(lambda: len(statuses) > 60)
        await upstreams[0].stop()
        await until(lambda: len(statuses) > 250)
        await upstreams[0].start()
        await asking
        assert set(statuses) == {200} and len(statuses) == 480
        await until(lambda: gateway.pool.replicas[0].ready)


async def test_a_refused_connection_takes_the_replica_out_at_once_and_back_when_it_listens():
    upstreams = Upstream("a", named), Upstream("b", named)
    async with relaying(*upstreams) as gateway:
        await upstreams[0].stop()
        replies = [await gateway.ask(method="POST", body=b"x") for _ in range(8)]
        assert {reply.body for reply in replies} == {b"b"}
        await until(lambda: gateway.pool.replicas[0].state == "unreachable")
        await upstreams[0].start()
        await until(lambda: gateway.pool.replicas[0].ready)
        assert gateway.pool.replicas[0].describe(0.0)["generation"] == 1


async def test_with_every_replica_away_requests_wait_for_the_first_that_is_back():
    upstream = Upstream("a", named)
    async with relaying(upstream) as gateway:
        await gateway.ask()
        await upstream.stop()
        asking = asyncio.ensure_future(gateway.ask())
        await until(lambda: gateway.pool.status()["waiting"] == 1)
        await upstream.start()
        assert (await asking).status == 200


async def test_the_queue_is_bounded():
    upstream = Upstream("a", named)
    async with relaying(upstream, model="max_queue = 1") as gateway:
        await gateway.ask()
        await upstream.stop()
        await until(lambda: not gateway.pool.ready)
        waiting = await gateway.ask(complete=False)
        await until(lambda: gateway.pool.status()["waiting"] == 1)
        refused = await gateway.ask()
        assert refused.status == 429 and refused.header("retry-after") == "1"
        await upstream.start()
        await until(lambda: waiting.complete)


async def test_without_any_replica_the_answer_says_why():
    upstream = Upstream("a")
    async with relaying(upstream) as gateway:
        await upstream.stop()
        await until(lambda: not gateway.pool.ready)
        gateway.pool._unserved_since -= 100
        reply = await gateway.ask()
        assert reply.status == 503 and b"a is unreachable" in reply.body
        assert reply.header("retry-after") == "1"


@pytest.mark.parametrize("key", ["slots = 2", "connections = 2"])
async def test_slots_bound_what_a_replica_has_at_a_time(key):
    at_once, most = 0, 0
    go = asyncio.Event()

    async def script(call):
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await go.wait()
        at_once -= 1
        await call.answer(b"x")

    replicas, relay = (key, "") if key.startswith("slots") else ("", key)
    async with relaying(Upstream("a", script), replicas=replicas, relay=relay) as gateway:
        asking = [asyncio.ensure_future(gateway.ask(f"/{n}")) for n in range(7)]
        await until(lambda: gateway.pool.status()["waiting"] == 5 and at_once == 2)
        go.set()
        replies = await asyncio.gather(*asking)
        assert {reply.status for reply in replies} == {200} and most == 2


@pytest.mark.parametrize("status", ["429 Too Many", "503 Busy", "502 Bad", "504 Late"])
async def test_another_replica_is_asked_where_one_pushes_back(status):
    script = once(lambda call: call.answer(b"busy", status, "retry-after: 7\r\n"), named)
    upstreams = Upstream("a", script), Upstream("b", script)
    async with relaying(*upstreams) as gateway:
        reply = await gateway.ask()
        assert reply.status == 200
        replica = next(r for r in gateway.pool.replicas if r.name.encode() != reply.body)
        now = gateway.pool.loop.time()
        assert (replica.busy_until > now + 5) == (status[:3] in ("429", "503"))
        # What asked to be left alone is left alone.
        if replica.busy_until > now:
            bodies = {(await gateway.ask(f"/{n}")).body for n in range(6)}
            assert replica.name.encode() not in bodies


async def test_push_back_of_all_is_passed_on_with_its_words_and_tells_clients_not_to_multiply():
    async def busy(call):
        await call.answer(b"full", "429 Too Many Requests", "retry-after: 3\r\n")

    upstreams = Upstream("a", busy), Upstream("b", busy)
    async with relaying(*upstreams) as gateway:
        reply = await gateway.ask()
        assert (reply.status, reply.body) == (429, b"full")
        assert reply.header("retry-after") == "3" and reply.header("x-should-retry") == "false"
        for number in range(20):
            await gateway.ask(f"/{number}")
        assert all(replica.breaker.closed for replica in gateway.pool.replicas)


async def test_client_errors_never_open_a_breaker_and_server_errors_do():
    async def script(call):
        await call.answer(b"", call.target[1:] + " Status")

    upstreams = Upstream("a", script), Upstream("b", script)
    async with relaying(*upstreams) as gateway:
        for _ in range(30):
            assert (await gateway.ask("/404")).status == 404
        assert all(replica.breaker.closed for replica in gateway.pool.replicas)
        for _ in range(30):
            assert (await gateway.ask("/500")).status == 500
        open_ = [replica for replica in gateway.pool.replicas if not replica.breaker.closed]
        assert len(open_) == 1  # the cap: half of the pool
        assert gateway.pool.measures.codes["http_500"] == 30


@pytest.mark.parametrize("garbage", [b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 200 OK\r\nbroken\r\n\r\n"])
async def test_nonsense_is_a_bad_gateway(garbage):
    async with relaying(Upstream("a", lambda call: call.send(garbage))) as gateway:
        reply = await gateway.ask(method="POST", body=b"x")
        assert reply.status == 502 and gateway.counters()["failed"] == 1


async def test_an_answer_that_breaks_off_is_never_made_to_look_whole():
    async def script(call):
        await call.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await until(lambda: client.reply.body)
        call.die()

    upstreams = Upstream("a", script), Upstream("b", script)
    async with relaying(*upstreams) as gateway:
        client = await gateway.connect()
        reply = await gateway.ask(client=client)
        assert reply.body == b"abc" and client.closed and not reply.complete
        assert sum(len(u.calls) for u in upstreams) == 1
        assert gateway.counters()["failed"] == 1


async def test_retries_stop_at_their_number():
    upstreams = [Upstream(name, dies) for name in "abcde"]
    async with relaying(*upstreams, model="retries = 2") as gateway:
        reply = await gateway.ask()
        assert reply.status == 502 and reply.header("x-should-retry") == "false"
        assert sum(len(u.calls) for u in upstreams) == 3


async def test_a_client_that_leaves_cancels_the_upstream_at_once():
    async def script(call):
        if await call.reader.read(1) == b"":
            call.upstream.broken += 1

    upstream = Upstream("a", script)
    async with relaying(upstream) as gateway:
        client = await gateway.connect()
        await gateway.ask(client=client, complete=False)
        await until(lambda: upstream.calls)
        assert gateway.pool.replicas[0].load.in_flight == 1
        client.transport.abort()
        await until(lambda: upstream.broken)
        assert gateway.pool.replicas[0].load.in_flight == 0
        assert gateway.counters()["cancelled"] == 1
        assert gateway.pool.replicas[0].breaker.closed


async def test_a_client_that_leaves_while_it_waits_in_the_queue_leaves_it():
    upstream = Upstream("a", named)
    async with relaying(upstream) as gateway:
        await gateway.ask()
        await upstream.stop()
        client = await gateway.connect()
        await until(lambda: not gateway.pool.ready)
        await gateway.ask(client=client, complete=False)
        await until(lambda: gateway.pool.status()["waiting"] == 1)
        client.transport.abort()
        await until(lambda: gateway.counters()["cancelled"] == 1)
        await until(lambda: gateway.pool.status()["waiting"] == 0)


@pytest.mark.parametrize("answers_others", [False, True])
async def test_a_replica_that_accepts_and_never_answers_gets_no_more(monkeypatch, answers_others):
    """Unless it is busy with others' answers: then it is slow, and clients were in a hurry."""
    monkeypatch.setattr(transit, "SILENT_S", 0.01)
    never = asyncio.Event()

    async def script(call):
        if call.target == "/stream":
            await call.start()
            await call.chunk(b"data: 1\n\n")
        await never.wait()

    hole, well = Upstream("hole", script), Upstream("well")
    async with relaying(hole, well, model='routing = "wrr"\nretries = 0') as gateway:
        found = {replica.name: replica for replica in gateway.pool.replicas}
        if answers_others:
            found["well"].drain(0.0)
            stream = await gateway.ask("/stream", complete=False)
            await until(lambda: b"data" in stream.body)
            found["well"].undrain(0.0)
        for each in found.values():
            each.load.started -= 100  # past its slow start
            each.load.refresh(gateway.pool.loop.time())
        hurried = {"fields": "x-deadline-ms: 60\r\n"}
        statuses = [(await gateway.ask(**hurried)).status for _ in range(24)]
        assert (found["hole"].breaker.opened == 0) is answers_others
        assert {200, 504} >= set(statuses) and 200 in statuses
        never.set()


@pytest.mark.parametrize("method, status", [("GET", 200), ("POST", 502)])
async def test_requests_on_connections_that_are_given_up_hear_of_it(method, status):
    """As when a process has come back on another port, and the old one's are closed."""
    never = asyncio.Event()

    async def script(call):
        if len(upstream.calls) == 1:
            await never.wait()
        await call.answer(b"again")

    upstream = Upstream("a", script)
    async with relaying(upstream) as gateway:
        reply = await gateway.ask(method=method, body=b"x", complete=False)
        await until(lambda: upstream.calls)
        replica = gateway.pool.replicas[0]
        await replica._move(Endpoint.parse(f"http://localhost:{upstream.port}"))
        await until(lambda: reply.complete)
        assert reply.status == status
        never.set()


async def test_a_look_at_health_leaves_its_connection_to_nobody():
    """It is closed when the look is over: a request that had taken it would never be answered."""
    upstream = Upstream("a")
    await upstream.start()
    loop = asyncio.get_running_loop()
    endpoint = Endpoint.parse(f"http://127.0.0.1:{upstream.port}")
    pool = ConnectionPool(endpoint, loop)
    look = loop.create_task(ask_health(pool, endpoint, "/health"))
    try:
        while not look.done():
            assert pool.take() is None
            await asyncio.sleep(0)
        assert look.result() is None and [call.target for call in upstream.calls] == ["/health"]
        await until(lambda: not pool.open)
    finally:
        await pool.close()
        await upstream.stop()
