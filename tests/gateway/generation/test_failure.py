"""Replicas that die, refuse, lie and fall silent: nothing is lost, repeated or left unsaid."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import orjson
import pytest

from gateway.policy.breaker import State
from tests.gateway.fake_llm import WORDS, FakeLLM, completion, talk
from tests.gateway.fakes import until
from tests.gateway.generation.fakes import ASK, STREAM, serving


def error_of(body: bytes) -> dict:
    """The error in a stream's last event."""
    last = [event for event in body.split(b"\n\n") if event][-1]
    return orjson.loads(last.removeprefix(b"data: "))["error"]


async def test_a_replica_that_dies_before_the_first_byte_costs_no_call(tmp_path):
    async def dies(call):
        call.piece(b"")  # the type is known, and nothing has gone to the client
        await asyncio.sleep(0)
        call.replica.die()

    first = FakeLLM(tmp_path / "a", dies)
    async with serving(tmp_path, first, FakeLLM(tmp_path / "b")) as gateway:
        gateway.fleet.set_weight("r1", 0.001)
        for body in (ASK, STREAM):
            reply = await gateway.post(body)
            assert (reply.status, reply.header("x-served-by")) == (200, "r1")
            assert WORDS[0].encode() in reply.body
            await until(lambda: all(replica.ready for replica in gateway.model.replicas))
        assert gateway.counters()["done"] == 2 == gateway.model.measures.retried


async def test_a_replica_that_dies_within_a_stream_is_told_to_the_client_and_not_replayed(tmp_path):
    async def dies(call):
        call.delta("The")
        await until(lambda: client.reply.body)
        call.replica.die()

    fakes = [FakeLLM(tmp_path / name, dies) for name in "ab"]
    async with serving(tmp_path, *fakes) as gateway:
        client = await gateway.connect()
        reply = await gateway.post(STREAM, client=client)
        assert reply.status == 200 and reply.body.count(b"data: ") == 2
        error = error_of(reply.body)
        assert (error["code"], error["type"]) == ("bad_replica", "server_error")
        assert "died" in error["message"]
        await until(lambda: client.closed)
        assert sum(len(fake.calls) for fake in fakes) == 1
        assert gateway.counters()["failed"] == 1


async def test_what_a_client_did_wrong_is_told_as_the_replica_said_it(tmp_path):
    async def script(call):
        call.fault(status=400, code="invalid_request", message="top_k: is -2", param="top_k")

    fakes = [FakeLLM(tmp_path / name, script) for name in "ab"]
    async with serving(tmp_path, *fakes) as gateway:
        for body in (ASK, STREAM):
            reply = await gateway.post(body)
            assert reply.status == 400 and reply.header("x-should-retry") is None
            assert orjson.loads(reply.body)["error"] == {
                "message": "top_k: is -2", "type": "invalid_request_error", "param": "top_k",
                "code": "invalid_request",
            }  # fmt: skip
        assert sum(len(fake.calls) for fake in fakes) == 2
        now = asyncio.get_running_loop().time()
        assert all(r.breaker.state(now) is State.CLOSED for r in gateway.model.replicas)


@pytest.mark.parametrize("status", [429, 503, 500])
async def test_what_another_replica_may_do_is_asked_of_it(tmp_path, status):
    async def script(call):
        if call.replica is busy:
            call.fault(status=status, code="busy", message="not now", retryable=True)
        else:
            await talk(call)

    busy, other = (FakeLLM(tmp_path / name, script) for name in "ab")
    async with serving(tmp_path, busy, other) as gateway:
        gateway.fleet.set_weight("r1", 0.001)
        reply = await gateway.post(STREAM)
        assert (reply.status, reply.header("x-served-by")) == (200, "r1")
        gateway.fleet.drain("r1")
        reply = await gateway.post(STREAM)
        assert (reply.status, reply.header("x-should-retry")) == (status, "false")
        assert orjson.loads(reply.body)["error"]["message"] == "not now"


async def test_a_busy_replica_is_left_alone_while_there_is_another(tmp_path):
    async def script(call):
        if call.replica is busy:
            call.fault(status=429, code="overloaded", message="full", retryable=True)
        else:
            await talk(call)

    busy, other = (FakeLLM(tmp_path / name, script) for name in "ab")
    async with serving(tmp_path, busy, other) as gateway:
        gateway.fleet.set_weight("r1", 0.001)
        for _ in range(3):
            assert (await gateway.post(STREAM)).status == 200
        assert (len(busy.calls), len(other.calls)) == (1, 3)


async def test_a_fault_within_a_stream_is_its_last_event(tmp_path):
    async def script(call):
        call.delta("The")
        call.fault(status=500, code="model_error", message="out of memory", retryable=True)

    async with serving(tmp_path, FakeLLM(tmp_path / "a", script)) as gateway:
        reply = await gateway.post(STREAM)
        assert reply.status == 200
        assert error_of(reply.body)["message"] == "out of memory"
        assert gateway.counters()["failed"] == 1


async def test_an_answer_without_its_type_is_none(tmp_path):
    async def script(call):
        call._said = True
        call.piece(b"what", final=True)

    async with serving(tmp_path, FakeLLM(tmp_path / "a", script), model="retries = 0") as gateway:
        reply = await gateway.post(ASK)
        assert reply.status == 502 and b"without its type" in reply.body


async def test_what_a_replica_says_after_it_was_given_up_is_not_heard(tmp_path):
    over = asyncio.Event()

    async def script(call):
        if call.replica is first:
            call._said = True
            call.piece(b"what")
            await call.cancelled.wait()
            call._said = False
            call.piece(b"data: wrong\n\n", final=True)
            over.set()
        else:
            await over.wait()
            await talk(call)

    first, second = (FakeLLM(tmp_path / name, script) for name in "ab")
    async with serving(tmp_path, first, second) as gateway:
        gateway.fleet.set_weight("r1", 0.001)
        reply = await gateway.post(STREAM)
        assert reply.header("x-served-by") == "r1" and b"wrong" not in reply.body
        assert reply.body.endswith(b"[DONE]\n\n")
        assert gateway.counters()["done"] == 1


async def test_bytes_that_are_no_frame_cost_the_link_and_no_call(tmp_path):
    async def script(call):
        if len(fake.calls) == 1:
            call.connection.transport.write(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(20))
        else:
            await talk(call)

    fake = FakeLLM(tmp_path / "a", script)
    async with serving(tmp_path, fake) as gateway:
        reply = await gateway.post(ASK)
        assert reply.status == 200 and len(fake.calls) == 2


async def test_a_client_that_leaves_ends_its_call_at_once(tmp_path):
    async def script(call):
        if b"stream" in call.body:
            call.delta("The")
        await call.cancelled.wait()
        call.piece(b"too late", final=True)

    fake = FakeLLM(tmp_path / "a", script)
    async with serving(tmp_path, fake) as gateway:
        for number, body in enumerate((ASK, STREAM)):
            client = await gateway.connect()
            await gateway.post(body, client=client, complete=False)
            await until(lambda n=number: len(fake.calls) == n + 1)
            client.transport.abort()
            await asyncio.wait_for(fake.calls[number].cancelled.wait(), 20)
            await until(lambda n=number: gateway.counters()["cancelled"] == n + 1)
            assert gateway.model.replicas[0].calls.work == 0.0


@pytest.mark.parametrize("body", [ASK, STREAM, b"begun " + STREAM])
async def test_a_client_that_closes_in_order_is_noticed_too(tmp_path, body):
    async def script(call):
        if begun:
            call.delta("The")
        await call.cancelled.wait()
        call.piece(final=True)

    begun = body.startswith(b"begun")
    fake = FakeLLM(tmp_path / "a", script)
    async with serving(tmp_path, fake) as gateway:
        client = await gateway.connect()
        await gateway.post(body.removeprefix(b"begun "), client=client, complete=False)
        await until(lambda: fake.calls)
        client.transport.close()
        await asyncio.wait_for(fake.calls[0].cancelled.wait(), 20)
        await until(lambda: gateway.counters()["cancelled"] == 1)


async def test_a_client_that_says_no_more_still_gets_its_answer(tmp_path):
    go = asyncio.Event()

    async def script(call):
        await go.wait()
        await talk(call)

    async with serving(tmp_path, FakeLLM(tmp_path / "a", script)) as gateway:
        for body in (ASK, STREAM):
            client = await gateway.connect()
            await gateway.post(body, client=client, complete=False)
            client.transport.write_eof()
            await until(lambda c=client: b"100 Continue" in c.raw)
            go.set()
            await until(lambda c=client: c.closed)
            assert b"HTTP/1.1 200 OK" in client.raw and WORDS[-1].encode() in client.raw
            go.clear()


async def test_a_client_that_leaves_while_it_waits_is_sent_nowhere(tmp_path):
    go = asyncio.Event()

    async def script(call):
        await go.wait()
        await talk(call)

    fake = FakeLLM(tmp_path / "a", script)
    fake.slots = 2
    async with serving(tmp_path, fake) as gateway:
        first = [await gateway.post(ASK, complete=False) for _ in range(2)]
        await until(lambda: len(fake.calls) == 2)
        client = await gateway.connect()
        await gateway.post(ASK, client=client, complete=False)
        await until(lambda: gateway.model.status()["waiting"] == 1)
        client.transport.abort()
        await until(lambda: gateway.counters()["cancelled"] == 1)
        go.set()
        await until(lambda: all(reply.complete for reply in first))
        assert len(fake.calls) == 2


async def test_a_deadline_ends_what_has_not_ended(tmp_path):
    async def script(call):
        if b"stream" in call.body:
            call.delta("The")
        await call.cancelled.wait()
        call.piece(final=True)

    fake = FakeLLM(tmp_path / "a", script)
    async with serving(tmp_path, fake) as gateway:
        reply = await gateway.post(ASK, fields="x-deadline-ms: 60\r\n")
        assert reply.status == 504
        assert orjson.loads(reply.body)["error"]["code"] == "deadline_exceeded"
        reply = await gateway.post(STREAM, fields="x-deadline-ms: 400\r\n")
        assert reply.status == 200 and error_of(reply.body)["code"] == "deadline_exceeded"
        reply = await gateway.post(ASK[:-1] + b',"timeout":0.06}')
        assert reply.status == 504
        # The SDK's own limit: of a whole answer, and of the silence in a stream.
        for body, status in ((ASK, 504), (STREAM, 200)):
            reply = await gateway.post(body, fields="x-stainless-read-timeout: 0.3\r\n")
            assert reply.status == status and b"deadline_exceeded" in reply.body
        await until(lambda: all(call.cancelled.is_set() for call in fake.calls))
        assert len(fake.calls) == 5 == gateway.counters()["failed"]


async def test_the_sdks_limit_is_of_a_whole_answer_or_of_the_silence_in_a_stream(tmp_path):
    go = asyncio.Event()

    async def script(call):
        await go.wait()
        await talk(call)

    async with serving(tmp_path, FakeLLM(tmp_path / "a", script)) as gateway:
        for body, seconds in ((ASK, 300.0), (STREAM, 600.0)):
            fields = "x-stainless-read-timeout: 300\r\n"
            reply = await gateway.post(body, fields=fields, complete=False)
            await until(lambda: gateway.model.calls.live)
            (call,) = gateway.model.calls._live
            assert call.deadline - call.began == pytest.approx(seconds)
            assert call.silence_s == 300.0
            go.set()
            await until(lambda r=reply: r.complete)
            go.clear()


@pytest.mark.parametrize("limit", ["first_ms", "idle_ms"])
async def test_a_replica_that_falls_silent_is_given_up(tmp_path, limit):
    async def script(call):
        if limit == "idle_ms":
            call.delta("The")
        await call.cancelled.wait()
        call.piece(final=True)

    fakes = [FakeLLM(tmp_path / name, script) for name in "ab"]
    keys = f"[models.generation]\n{limit} = 60"
    async with serving(tmp_path, *fakes, model=keys) as gateway:
        reply = await gateway.post(STREAM)
        assert b"replica_timeout" in reply.body
        # The prompt is paid for already, and somebody is still at it: it is not sent elsewhere.
        assert sum(len(fake.calls) for fake in fakes) == 1
        assert reply.status == (504 if limit == "first_ms" else 200)


async def test_a_silent_stream_gets_comments_and_a_whole_answer_none(tmp_path):
    go = asyncio.Event()

    async def script(call):
        if b"stream" in call.body:
            call.delta("The")
            await go.wait()
            call.done()
        else:
            call.piece(b"{", type="application/json")
            await go.wait()
            call.piece(b"}", final=True)

    keys = "[models.generation]\nheartbeat_ms = 60"
    async with serving(tmp_path, FakeLLM(tmp_path / "a", script), model=keys) as gateway:
        whole = await gateway.post(ASK, complete=False)
        reply = await gateway.post(STREAM, complete=False)
        await until(lambda: reply.body.count(b":\n\n") >= 2)
        go.set()
        await until(lambda: reply.complete and whole.complete)
        assert whole.body == b"{}"
        assert reply.body.replace(b":\n\n", b"").count(b"\n\n") == 2


async def test_a_slow_reader_loses_its_own_stream_only(tmp_path):
    go = asyncio.Event()

    async def script(call):
        if call.meta.priority:
            await go.wait()
            call.delta("fast")
            call.done()
            return
        while not call.cancelled.is_set():
            call.delta("x" * 10_000)
            await asyncio.sleep(0)
        call.piece(final=True)

    fake = FakeLLM(tmp_path / "a", script)
    keys = '[models.generation]\nunsent = "200 KB"'
    async with serving(tmp_path, fake, model=keys) as gateway:
        slow = await gateway.connect()
        slow.transport.pause_reading()
        await gateway.post(STREAM, client=slow, complete=False)
        other = await gateway.post(STREAM, fields="x-priority: 1\r\n", complete=False)
        await until(lambda: fake.calls and fake.calls[0].cancelled.is_set())
        assert gateway.counters()["failed"] == 1
        go.set()
        await until(lambda: other.complete)
        assert b"fast" in other.body
        slow.transport.resume_reading()
        await until(lambda: slow.reply.complete)
        assert error_of(slow.reply.body)["code"] == "request_timeout"


async def test_a_full_queue_is_refused_and_a_free_slot_takes_the_most_urgent(tmp_path):
    async def script(call):
        await step.acquire()
        call.whole(completion("ok"))

    step = asyncio.Semaphore(0)
    fake = FakeLLM(tmp_path / "a", script)
    fake.slots = 2
    async with serving(tmp_path, fake, model="max_queue = 3") as gateway:
        replies = []
        for number, priority in enumerate((0, 0, 0, -1, 5)):
            fields = f"x-priority: {priority}\r\nx-request-id: {number}\r\n"
            replies.append(await gateway.post(ASK, fields=fields, complete=False))
            await until(lambda n=number: gateway.counters()["live"] == n + 1)
        replies.append(await gateway.post(ASK, fields="x-request-id: 5\r\n", complete=False))
        # The least urgent of those that wait makes room.
        await until(lambda: replies[3].complete)
        assert replies[3].status == 429
        for _ in replies:
            step.release()
        await until(lambda: all(reply.complete for reply in replies))
        assert [call.meta.request_id for call in fake.calls] == ["0", "1", "4", "2", "5"]


async def test_a_model_that_is_unloaded_removed_or_away_says_so(tmp_path):
    go = asyncio.Event()

    async def script(call):
        call.delta("The")
        await go.wait()
        call.done()

    fake = FakeLLM(tmp_path / "a", script)
    async with serving(tmp_path, fake) as gateway:
        running = await gateway.post(STREAM, complete=False)
        await until(lambda: running.body)
        gateway.model.serve(False)
        reply = await gateway.post(ASK)
        assert reply.status == 503 and b"unloaded" in reply.body
        go.set()
        await until(lambda: running.complete)
        assert running.body.endswith(b"[DONE]\n\n")
        gateway.model.serve(True)
        gateway.fleet.drain("r0")
        reply = await gateway.post(ASK)
        assert reply.status == 503 and b"draining" in reply.body
        gateway.fleet.undrain("r0")
        assert (await gateway.post(STREAM)).status == 200


async def test_a_replica_that_cannot_go_on_tells_the_client_itself_and_it_counts_as_failed(
    tmp_path,
):
    fault = {"status": 500, "code": "model_error", "message": "not finite"}
    said = b'data: {"error":{"message":"not finite"}}\n\ndata: [DONE]\n\n'

    async def script(call):
        call.delta("The")
        call.piece(said, final=True, fault=fault)

    async with serving(tmp_path, FakeLLM(tmp_path / "a", script)) as gateway:
        reply = await gateway.post(STREAM)
        assert reply.body.endswith(b"\n\n" + said)
        assert (gateway.counters()["done"], gateway.counters()["failed"]) == (0, 1)


async def test_a_call_that_replicas_die_of_is_tried_no_fourth_time(tmp_path):
    async def dies(call):
        call.replica.die()

    fakes = [FakeLLM(tmp_path / name, dies) for name in "abcd"]
    async with serving(tmp_path, *fakes, model="retries = 5") as gateway:
        reply = await gateway.post(ASK)
        assert (reply.status, reply.header("x-should-retry")) == (502, "false")
        assert sum(len(fake.calls) for fake in fakes) == 3


async def test_a_smaller_queue_refuses_what_finds_no_room_and_keeps_the_rest(tmp_path):
    step = asyncio.Semaphore(0)

    async def script(call):
        await step.acquire()
        call.whole(completion("ok"))

    fake = FakeLLM(tmp_path / "a", script)
    fake.slots = 2
    async with serving(tmp_path, fake) as gateway:
        replies = [await gateway.post(ASK, complete=False) for _ in range(6)]
        await until(lambda: gateway.model.status()["waiting"] == 4)
        gateway.model.reconfigure(replace(gateway.model.config, max_queue=1))
        await until(lambda: sum(reply.complete for reply in replies) == 3)
        for _ in replies:
            step.release()
        await until(lambda: all(reply.complete for reply in replies))
        assert sorted(reply.status for reply in replies) == [200, 200, 200, 429, 429, 429]


async def test_a_stream_that_begins_late_gets_comments_and_may_still_go_elsewhere(tmp_path):
    go = asyncio.Event()

    async def script(call):
        if call.replica is first:
            await go.wait()
            call.replica.die()
        else:
            await talk(call)

    first, second = (FakeLLM(tmp_path / name, script) for name in "ab")
    keys = "[models.generation]\nheartbeat_ms = 60"
    async with serving(tmp_path, first, second, model=keys) as gateway:
        gateway.fleet.set_weight("r1", 0.001)
        reply = await gateway.post(STREAM, complete=False)
        whole = await gateway.post(ASK, complete=False)
        await until(lambda: reply.body.count(b":\n\n") >= 2)
        assert (reply.status, whole.status) == (200, 0)
        assert reply.header("content-type") == "text/event-stream"
        go.set()
        await until(lambda: reply.complete and whole.complete)
        assert reply.body.endswith(b"[DONE]\n\n") and reply.body.count(b"data: ") == len(WORDS) + 1
        assert whole.status == 200


async def test_a_stream_that_never_begins_ends_in_an_error_event(tmp_path):
    go = asyncio.Event()

    async def script(call):
        await go.wait()
        call.fault(status=400, code="invalid_request", message="top_k: is -2", param="top_k")

    keys = "[models.generation]\nheartbeat_ms = 60"
    async with serving(tmp_path, FakeLLM(tmp_path / "a", script), model=keys) as gateway:
        reply = await gateway.post(STREAM, complete=False)
        await until(lambda: b":\n\n" in reply.body)
        go.set()
        await until(lambda: reply.complete)
        assert reply.status == 200 and error_of(reply.body)["param"] == "top_k"


async def test_a_whole_answer_where_a_stream_was_begun_is_nonsense(tmp_path):
    go = asyncio.Event()

    async def script(call):
        await go.wait()
        call.whole({})

    keys = "retries = 0\n[models.generation]\nheartbeat_ms = 60"
    async with serving(tmp_path, FakeLLM(tmp_path / "a", script), model=keys) as gateway:
        reply = await gateway.post(STREAM, complete=False)
        await until(lambda: reply.body)
        go.set()
        await until(lambda: reply.complete)
        assert error_of(reply.body)["code"] == "bad_replica"


async def test_a_call_that_cannot_begin_in_time_is_refused_when_it_comes(tmp_path, monkeypatch):
    monkeypatch.setattr("gateway.policy.drain.LEAST_S", 0.0)
    step = asyncio.Semaphore(0)

    async def script(call):
        await step.acquire()
        call.whole(completion("ok"))

    fake = FakeLLM(tmp_path / "a", script)
    fake.slots = 2
    async with serving(tmp_path, fake) as gateway:
        replies = [await gateway.post(ASK, complete=False) for _ in range(8)]
        await until(lambda: gateway.model.status()["waiting"] == 6)
        step.release()
        await until(lambda: len(fake.calls) == 3)
        # One call in this time: the six before a new one take six times as long.
        clock, since = asyncio.get_running_loop().time, gateway.model.calls._drain._since
        await until(lambda: clock() - since > 0.1)
        late = await gateway.post(ASK, fields="x-deadline-ms: 200\r\n")
        assert late.status == 429 and int(late.header("retry-after")) >= 1
        assert b"could not begin before its deadline" in late.body
        for _ in replies:
            step.release()
        await until(lambda: all(reply.complete for reply in replies))
        assert all(reply.status == 200 for reply in replies)
