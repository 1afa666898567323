from __future__ import annotations

import asyncio
import json
import sys
from contextlib import asynccontextmanager

import pytest

from bench.generators import Outcome, Task, marks
from bench.generators.contest import ask
from bench.generators.field import FIRST_TOKENS, Field, Plan
from bench.generators.player import Player
from bench.generators.prompts import WORDS, Prompts
from bench.load.volley import VolleyFailed, read, volley
from bench.roofline import Machine, Roofline, Shape
from bench.series import MeasureFailed

TASK = Task(prompts=[[1, 2, 3], [1, 2, 4]], shared=2, tokens=2)
SHAPE = Shape(2, 2, 1, 32, 10_000, 6_000)


@pytest.fixture
def words(tmp_path):
    """A folder with a tokenizer to which each word is a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(WORDS))}
    tokenizer = Tokenizer(models.WordLevel({**vocabulary, "?": 999}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_prompts_have_one_length_and_begin_alike_only_where_they_share(words):
    sizes = {"shared": 6, "own": 4, "tokens": 5}
    task = Prompts(words, 1).task("a", 3, **sizes)
    assert {len(prompt) for prompt in task.prompts} == {10}
    assert len({tuple(prompt[:6]) for prompt in task.prompts}) == 1
    assert len({tuple(prompt[6:]) for prompt in task.prompts}) == 3
    assert task.total == 15
    assert Prompts(words, 1).task("a", 3, **sizes) == task
    assert Prompts(words, 1).task("b", 3, **sizes).prompts[0] != task.prompts[0]
    assert Prompts(words, 2).task("a", 3, **sizes).prompts[0] != task.prompts[0]


def test_the_first_token_is_timed_from_the_start_and_the_others_from_each_other():
    first, gaps = marks(10.0, [[10.5, 10.75], [11.0, 12.0]])
    assert first == [0.5, 1.0] and gaps == [0.25, 1.0]


# --------------------------------------------------------------------------------- its programs

ECHO = """
from bench.generators import Outcome, answer_tasks
def generate(task):
    print("a library's chatter")
    if task.tokens == 13:
        raise ValueError("no thirteen")
    return Outcome(seconds=1.0, first=[0.1], gaps=[], answers=[list(p) for p in task.prompts])
answer_tasks({"echo": "1.0"}, generate)
"""


def test_a_program_keeps_its_model_and_says_why_a_task_failed(tmp_path):
    with Player([sys.executable, "-c", ECHO], log=tmp_path / "log") as player:
        player.ready()
        assert player.versions == {"echo": "1.0"}
        with pytest.raises(MeasureFailed, match="cannot run: ValueError: no thirteen"):
            player.play(Task(prompts=[[1]], shared=0, tokens=13))
        assert player.play(TASK).answers == [[1, 2, 3], [1, 2, 4]]


def test_a_program_that_ends_is_out_with_its_last_words(tmp_path):
    command = [sys.executable, "-c", "import sys; sys.exit('no such library')"]
    with (
        Player(command, log=tmp_path / "log") as player,
        pytest.raises(MeasureFailed, match="it ended: no such library"),
    ):
        player.ready()


# ------------------------------------------------------------------------------------ ours


def event(text, **more):
    return f"data: {json.dumps({'choices': [{'text': text}], **more})}\n\n".encode()


USAGE = {"completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 2}}
LAST = event("", usage=USAGE) + b"data: [DONE]\n\n"


def test_an_event_is_timed_by_its_last_byte():
    whole = event(" a")
    found = read(200, [(1.0, b": a comment\n\n"), (2.0, whole[:9]), (3.0, whole[9:] + LAST)])
    assert (found.text, found.times, found.tokens, found.cached) == (" a", [3.0], 2, 2)


def test_what_is_no_whole_answer_fails():
    with pytest.raises(VolleyFailed, match="ended early"):
        read(200, [(1.0, event(" a"))])
    with pytest.raises(VolleyFailed, match="answered 429: later"):
        read(429, [(1.0, b"later")])
    with pytest.raises(VolleyFailed, match="no pages"):
        read(200, [(1.0, b'data: {"error": {"message": "no pages"}}\n\n')])


@asynccontextmanager
async def server(answer, asked):
    """Answers every request with the same chunked stream."""

    async def serve(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split()[0])
        asked.append(json.loads(await reader.readexactly(length)))
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for piece in answer:
            writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


async def test_a_task_is_asked_as_streamed_completions_of_its_length():
    asked = []
    async with server([event(" a"), event(" b"), LAST], asked) as base:
        found = await asyncio.to_thread(ask, base, "m", TASK)
    assert found.answers == [" a b"] * 2 and found.cached == 4
    assert len(found.first) == 2 and len(found.gaps) == 2
    assert sorted(body["prompt"] for body in asked) == [[1, 2, 3], [1, 2, 4]]
    assert all(body["ignore_eos"] and body["max_tokens"] == 2 for body in asked)


async def test_an_answer_of_another_length_is_not_counted():
    async with server([event(" a"), LAST.replace(b": 2,", b": 1,", 1)], []) as base:
        with pytest.raises(MeasureFailed, match="instead of 2"):
            await asyncio.to_thread(ask, base, "m", TASK)


async def test_nobody_there_is_a_failure():
    with pytest.raises(VolleyFailed, match="cannot connect"):
        await volley("http://127.0.0.1:1/v1/completions", [{}], 1.0)


# --------------------------------------------------------------------------------- its figures


def outcome(seconds, answers):
    return Outcome(seconds=seconds, first=[0.1, 0.3], gaps=[0.02, 0.01, 0.03], answers=answers)


def test_figures_are_of_whole_tasks_and_utilisation_of_steps():
    plan = Plan("own", shared=0, own=3, tokens=2, repetitions=2)
    field = Field([plan], [2])
    cell = field.cell(plan, 2)
    roof = Roofline(SHAPE, Machine(1e6, 1e9))
    assert cell.figures("ours", roof) == {}
    for seconds in (1.0, 2.0):
        cell.add("ours", TASK, outcome(seconds, []))
    found = cell.figures("ours", roof)
    assert found["tokens_s"] == pytest.approx((4 / 1.0 + 4 / 2.0) / 2)
    assert found["of_roof"] == pytest.approx(found["tokens_s"] / cell.roof(roof))
    assert (found["ttft_p50_ms"], found["ttft_p99_ms"]) == pytest.approx((300.0, 300.0))
    assert found["bandwidth"] == pytest.approx(roof.step_bytes(2, 4) / (0.02 * 1e6))
    assert field.to_json({"ours": roof})["own, 2 at once"]["ours"] == found


def test_answers_are_compared_by_how_they_begin(words):
    plan = Plan("own", shared=0, own=3, tokens=8, repetitions=1)
    field, prompts = Field([plan], [2]), Prompts(words, 1)
    assert field.agreement(prompts, "ours", "theirs") is None
    alike, cell = prompts.text(list(range(FIRST_TOKENS))), field.cell(plan, 2)
    cell.add("theirs", TASK, outcome(1.0, [list(range(8)), list(range(8))]))
    cell.add("ours", TASK, outcome(1.0, [alike + " and more", "something else"]))
    assert field.agreement(prompts, "ours", "theirs") == 0.5
