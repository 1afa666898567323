"""generate and generate_stream on v2, and the same on a socket."""

from __future__ import annotations

import orjson
import pytest

from backends.errors import BackendError
from tests.backends.llm.asking import Desk, events

ASK = {"text_input": "Hello", "parameters": {"max_tokens": 20, "temperature": 0}}


async def test_generate_is_whole():
    desk = Desk(" world")
    reply = desk.json("generate", {**ASK, "id": "7"})
    assert reply == {
        "model_name": "m", "model_version": "1-a", "text_output": " world", "id": "7",
    }  # fmt: skip
    sampling = desk.engine.submitted[0].sampling
    assert (sampling.max_tokens, sampling.temperature) == (20, 0.0)


async def test_generate_stream_says_each_delta():
    found = events(Desk(" world").answer("generate_stream", ASK))
    assert "".join(event["text_output"] for event in found) == " world" and len(found) > 3
    assert all((event["model_name"], event["model_version"]) == ("m", "1-a") for event in found)


async def test_parameters_may_stand_beside_the_text():
    desk = Desk("x")
    desk.ask(
        "generate", {"text_input": "a", "max_tokens": 3, "timeout": 5_000_000, "stream": False}
    )
    assert desk.engine.submitted[0].sampling.max_tokens == 3


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "missing_required_parameter", "text_input"),
        ({"text_input": 3}, "invalid_value", "text_input"),
        ({"text_input": "a", "parameters": []}, "invalid_value", "parameters"),
        ({"text_input": "a", "top_k": 1, "parameters": {"top_k": 1}}, "invalid_value", "top_k"),
        ({"text_input": "a", "parameters": {"beams": 1}}, "unknown_parameter", "beams"),
        ({"text_input": "a", "stream": True}, "invalid_value", "stream"),
        ({"text_input": "a", "n": 2}, "invalid_value", "n"),
        ({"text_input": "a" * 400}, "context_length_exceeded", "text_input"),
        ([], "invalid_value", None),
    ],
)
async def test_what_is_wrong_is_refused_by_name(body, code, param):
    with pytest.raises(BackendError) as found:
        Desk().ask("generate", body)
    fault = found.value.fault()
    assert (fault.status, fault.code, fault.param) == (400, code, param)


def lines(data):
    return [orjson.loads(line) for line in data.splitlines()]


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": "Hi"}]},
        {"prompt": "Hi"},
        {"text_input": "Hi", "parameters": {"max_tokens": 16}},
    ],
)
async def test_lines_for_a_socket(body):
    *deltas, result = lines(Desk("Hello.").answer("ws", body))
    assert "".join(line["text"] for line in deltas) == "Hello."
    assert all(line["choice"] == 0 for line in deltas)
    assert deltas[-1]["finish"] == "stop" and not any("finish" in line for line in deltas[:-1])
    assert result.keys() == {"usage"} and result["usage"]["completion_tokens"] == 6


async def test_a_socket_s_lines_have_logprobs_and_choices():
    body = {"messages": [{"role": "user", "content": "Hi"}], "logprobs": True, "n": 2}
    *deltas, _ = lines(Desk("ab!").answer("ws", body))
    assert {line["choice"] for line in deltas} == {0, 1}
    assert [e["token"] for line in deltas if not line["choice"] for e in line["logprobs"]] == [
        "ab",
        "!",
    ]


async def test_streaming_is_no_choice_on_a_socket():
    with pytest.raises(BackendError, match="no meaning on a socket"):
        Desk().ask("ws", {"prompt": "Hi", "stream": False})
