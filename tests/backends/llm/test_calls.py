"""Calls from frame to last piece: one answer each, whatever ends them, and nothing left behind."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.errors import BackendError, NotReady, Overloaded
from backends.wire import Frame, Kind
from tests.backends.fakes import eventually
from tests.backends.llm.asking import Desk, events
from tests.backends.llm.scripted import FakeConnection

HI = {"messages": [{"role": "user", "content": "Hi"}]}
STREAM = {**HI, "stream": True}


def settled(desk):
    assert not desk.calls._live and not desk.calls._generations and not desk.calls._behind
    assert not desk.engine.busy
    return (desk.calls.done, desk.calls.failed, desk.calls.cancelled)


async def test_pieces_say_what_the_gateway_needs():
    desk = Desk("Hi")
    desk.engine.cached = 4
    id = desk.ask("chat", STREAM)
    assert not desk.connection.sent, "nothing is said before there is something to say"
    desk.engine.finish()
    _, infos = desk.reply(id)
    assert infos[0] == (False, {"type": "text/event-stream", "version": "1-a"})
    assert all(info is None and not final for final, info in infos[1:-1])
    final, info = infos[-1]
    prompt = len(desk.engine.submitted[0].prompt)
    assert final and info["load"] == {"pages_free": 10.0}
    assert info["usage"] == {"prompt_tokens": prompt, "completion_tokens": 2, "cached_tokens": 4}
    whole = desk.ask("chat", HI)
    desk.engine.finish()
    _, ((final, info),) = desk.reply(whole)
    assert final and (info["type"], info["version"]) == ("application/json", "1-a")
    assert settled(desk) == (2, 0, 0)


async def test_a_step_is_one_frame_for_each_connection():
    desk = Desk("abcdef")
    other = FakeConnection()
    ids = [desk.ask("chat", STREAM) for _ in range(3)]
    alone = desk.ask("chat", STREAM, other)
    desk.engine.step()
    assert (len(desk.connection.sent), len(other.sent)) == (1, 1)
    desk.engine.finish()
    texts = {desk.reply(id)[0].split(b'"created"')[0] != b"" for id in ids}
    assert texts == {True} and desk.reply(alone, other)[1][-1][0]
    assert settled(desk) == (4, 0, 0)


async def test_a_cancelled_call_ends_its_sequences_and_is_answered_once():
    desk = Desk("abcdef")
    id = desk.ask("completions", {"prompt": ["a", "b"], "stream": True})
    desk.engine.step()
    desk.calls.cancel(desk.connection, id)
    assert {g.key for g in desk.engine.submitted} == set(desk.engine.cancelled)
    assert desk.connection.faults[id].code == "client_closed_request"
    desk.calls.cancel(desk.connection, id)
    desk.engine.finish()
    assert settled(desk) == (0, 0, 1)


async def test_outputs_that_were_under_way_are_dropped():
    from backends.llm.generation import Output

    desk = Desk("abcdef")
    id = desk.ask("chat", STREAM)
    key = desk.engine.submitted[0].key
    desk.calls.cancel(desk.connection, id)
    desk.calls.outputs([Output(key, 0, [97]), Output(key, 0, [], "cancelled")])
    assert not desk.connection.sent and settled(desk) == (0, 0, 1)


async def test_a_lost_connection_ends_all_its_calls_and_no_others():
    desk = Desk("abcdef")
    lost = FakeConnection()
    for _ in range(3):
        desk.ask("chat", STREAM, lost)
    stays = desk.ask("chat", STREAM)
    desk.engine.step()
    desk.calls.lost(lost)
    assert len(desk.engine.cancelled) == 3 and len(desk.calls) == 1
    desk.engine.finish()
    assert desk.reply(stays)[1][-1][0] and not lost.faults
    assert settled(desk) == (1, 0, 3)


@pytest.mark.parametrize(
    ("finish", "status", "code"),
    [
        ("error", 500, "model_error"),
        ("deadline", 504, "deadline_exceeded"),
        ("cancelled", 499, "client_closed_request"),
    ],
)
async def test_what_goes_wrong_in_the_engine(finish, status, code):
    desk = Desk("abcdef")
    early, late = desk.ask("chat", STREAM), desk.ask("chat", HI)
    desk.engine.end(finish, "boom")
    for id in (early, late):
        fault = desk.connection.faults[id]
        assert (fault.status, fault.code) == (status, code)
    begun = desk.ask("chat", STREAM)
    desk.engine.step()
    desk.engine.end(finish, "boom")
    data, infos = desk.reply(begun)
    error, done = events(data)[-2:]
    assert error["error"]["code"] == code and done == "[DONE]"
    assert infos[-1][0] and begun not in desk.connection.faults
    assert settled(desk) == (0, 3, 0)
    assert desk.ended[-1].failed == (finish == "error")


async def test_one_choice_that_fails_fails_the_call():
    desk = Desk(lambda generation: ["ab", "cdef"])
    id = desk.ask("chat", {**HI, "n": 2})
    desk.engine.step(2)
    desk.engine.end("error", "boom")
    assert desk.connection.faults[id].message == "boom" and settled(desk) == (0, 1, 0)


async def test_an_engine_that_is_full_refuses_all_of_a_call():
    desk = Desk("ab")
    submit = desk.engine.submit

    def second_is_too_much(generation):
        if desk.engine.submitted:
            raise Overloaded("1 waits already")
        submit(generation)

    desk.engine.submit = second_is_too_much
    with pytest.raises(Overloaded):
        desk.ask("completions", {"prompt": ["a", "b"]})
    assert settled(desk) == (0, 1, 0)


async def test_deadlines_are_absolute_and_the_engine_s_business():
    import time

    desk = Desk("ab")
    before = time.monotonic()
    desk.ask("chat", HI, deadline_ms=5000.0)
    (generation,) = desk.engine.submitted
    assert before + 5 <= generation.deadline <= time.monotonic() + 5
    with pytest.raises(BackendError, match="deadline passed before"):
        desk.ask("chat", HI, deadline_ms=-1.0)


async def test_versions_are_pinned_or_not_found():
    desk = Desk("ab")
    desk.ask("chat", HI, version="1-a")
    assert desk.engine.submitted[0].version == "1-a"
    with pytest.raises(BackendError) as found:
        desk.ask("chat", HI, version="0-b")
    assert found.value.fault().status == 404 and found.value.fault().retryable


async def test_a_slow_connection_gets_merged_deltas_when_it_reads_again():
    desk = Desk("abcdefghij")
    id = desk.ask("chat", STREAM)
    desk.engine.step()
    desk.connection.paused = True
    for _ in range(4):
        desk.engine.step()
    assert len(desk.connection.sent) == 1, "it takes nothing, so it is sent nothing"
    desk.connection.resume()
    assert len(desk.connection.sent) == 2
    chunk = events(desk.reply(id)[0])[-1]
    assert len(chunk["choices"][0]["delta"]["content"]) >= 3, "one chunk for what came meanwhile"
    desk.connection.paused = True
    desk.engine.finish()
    desk.connection.resume()
    found = events(desk.reply(id)[0])
    text = "".join(c["choices"][0]["delta"].get("content") or "" for c in found[:-1])
    assert text == "abcdefghij" and found[-1] == "[DONE]" and desk.reply(id)[1][-1][0]
    assert settled(desk) == (1, 0, 0)


async def test_a_slow_connection_s_call_can_be_cancelled_and_lost():
    desk = Desk("abcdefghij")
    desk.connection.paused = True
    first, _ = desk.ask("chat", STREAM), desk.ask("chat", STREAM)
    desk.engine.step()
    desk.calls.cancel(desk.connection, first)
    desk.calls.lost(desk.connection)
    desk.connection.resume()
    assert not desk.connection.sent and settled(desk) == (0, 0, 2)


async def test_a_reply_that_is_long_goes_in_several_frames(monkeypatch):
    monkeypatch.setattr("backends.llm.calls.MAX_PIECE", 100)
    desk = Desk("abcdef")
    id = desk.ask("chat", HI)
    desk.engine.finish()
    data, infos = desk.reply(id)
    assert orjson.loads(data)["choices"] and len(infos) > 3
    assert "type" in infos[0][1] and [final for final, _ in infos].index(True) == len(infos) - 1


async def test_long_prompts_are_prepared_beside_the_loop():
    from tests.backends.llm.scripted import text_model

    desk = Desk("ab", text_model(max_context=20_000))
    id = desk.ask("completions", {"prompt": "a" * 10_000})
    await eventually(lambda: bool(desk.engine.submitted))
    desk.engine.finish()
    assert orjson.loads(desk.reply(id)[0])["usage"]["prompt_tokens"] > 9000
    wrong = desk.ask("completions", {"prompt": "a" * 10_000, "n": 0})
    await eventually(lambda: wrong in desk.connection.faults)
    assert desk.connection.faults[wrong].param == "n"
    gone = desk.ask("completions", {"prompt": "a" * 10_000})
    desk.calls.cancel(desk.connection, gone)
    await eventually(lambda: desk.preparation._bytes == 0)
    assert len(desk.engine.submitted) == 1 and settled(desk) == (1, 1, 1)


async def test_what_waits_to_be_prepared_is_bounded(monkeypatch):
    monkeypatch.setattr("backends.llm.prepare.MAX_WAITING_BYTES", 15_000)
    monkeypatch.setattr("backends.llm.prepare.MAX_BODY", 30_000)
    desk = Desk("ab")
    body = {"prompt": "a" * 10_000}
    desk.ask("completions", body)
    with pytest.raises(Overloaded):
        desk.ask("completions", body)
    with pytest.raises(BackendError, match="30000 at most"):
        desk.ask("completions", {"prompt": "a" * 40_000})
    desk.calls.close(NotReady("the replica ends"))
    assert len(desk.connection.faults) == 1


@pytest.mark.parametrize(
    "meta",
    [{}, {"surface": 1}, {"surface": "chat", "x": 1}, {"surface": "chat", "priority": "high"},
     {"surface": "chat", "deadline_ms": "soon"}, {"surface": "chat", "version": 3}, []],
)  # fmt: skip
async def test_meta_that_is_malformed(meta):
    desk = Desk()
    frame = Frame(Kind.CALL, 1, orjson.dumps(meta), memoryview(b"{}"))
    with pytest.raises(BackendError) as found:
        desk.calls.take(desk.connection, frame)
    assert found.value.fault().status == 400


async def test_other_surfaces_and_ids_in_use_are_refused():
    desk = Desk("abc")
    with pytest.raises(BackendError, match="answers no 'embeddings' calls") as found:
        desk.ask("embeddings", {"input": "a"})
    assert found.value.fault().status == 400
    id = desk.ask("chat", HI)
    desk._ids -= 1
    with pytest.raises(BackendError, match=f"id {id} is being answered"):
        desk.ask("chat", HI)
    desk.engine.finish()
    assert desk.reply(id)[1][-1][0]


deeds = st.lists(
    st.sampled_from(["ask", "ask_many", "step", "cancel", "pause", "resume", "end", "lose"]),
    max_size=40,
)


@settings(max_examples=40, deadline=None)
@given(deeds=deeds, seed=st.randoms(use_true_random=False))
def test_every_call_gets_exactly_one_terminal_answer(deeds, seed):
    import asyncio

    async def scenario():
        desk = Desk(lambda generation: ["abcdef"[: seed.randint(0, 6)]] * generation.n)
        connections = [FakeConnection(), FakeConnection()]
        asked: dict[int, FakeConnection] = {}
        lost: set[int] = set()
        for deed in deeds:
            connection = seed.choice(connections)
            if deed.startswith("ask"):
                body = {"prompt": ["a", "b"] if deed == "ask_many" else "a", "n": 2}
                body["stream"] = seed.random() < 0.5
                body["stop"] = "d" if seed.random() < 0.5 else None
                asked[desk.ask("completions", body, connection)] = connection
            elif deed == "step":
                desk.engine.step(seed.randint(1, 3))
            elif deed == "cancel" and asked:
                id = seed.choice(list(asked))
                desk.calls.cancel(asked[id], id)
            elif deed == "pause":
                connection.paused = True
            elif deed == "resume":
                connection.resume()
            elif deed == "end":
                desk.engine.end("error")
            elif deed == "lose":
                desk.calls.lost(connection)
                lost |= {id for id, c in asked.items() if c is connection}
                connections[connections.index(connection)] = FakeConnection()
        for connection in {*asked.values()}:
            connection.resume()
        desk.engine.finish()
        for id, connection in asked.items():
            _, infos = desk.reply(id, connection)
            ends = sum(final for final, _ in infos) + (id in connection.faults)
            assert ends == 1 or (id in lost and ends == 0)
            assert True not in [final for final, _ in infos][:-1]
        assert sum(settled(desk)) == len(asked)

    asyncio.run(scenario())


async def test_a_choice_that_met_its_stop_string_frees_its_pages_alone():
    desk = Desk(lambda generation: ["ab STOP and more", "no end of it"])
    id = desk.ask("chat", {**HI, "n": 2, "stop": "STOP"})
    (generation,) = desk.engine.submitted
    while not desk.engine.cancelled:
        desk.engine.step()
    assert desk.engine.cancelled == [(generation.key, 0)] and desk.engine.busy
    desk.engine.finish()
    first, second = orjson.loads(desk.reply(id)[0])["choices"]
    assert (first["message"]["content"], second["message"]["content"]) == ("ab ", "no end of it")
    assert settled(desk) == (1, 0, 0)


async def test_a_call_tells_of_its_version_by_the_steps_that_it_took():
    desk = Desk(lambda generation: ["abcdefgh"] * generation.n)
    desk.answer("chat", {**HI, "n": 3})
    desk.answer("completions", {"prompt": ["a", "b"]})
    length = len(desk.text.tokenizer.encode("abcdefgh", special=False))
    assert [(e.version, e.tokens, e.failed) for e in desk.ended] == [("1-a", length, False)] * 2
    assert all(e.seconds >= 0 for e in desk.ended)
