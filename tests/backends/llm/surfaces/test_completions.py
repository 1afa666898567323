"""/v1/completions: prompts of every form, echo, log-probabilities."""

from __future__ import annotations

import pytest
from openai.types import Completion

from backends.errors import BackendError
from tests.backends.llm.asking import Desk


async def test_a_text_is_continued():
    desk = Desk(" world")
    reply = desk.json("completions", {"model": "m", "prompt": "Hello"})
    completion = Completion.model_validate(reply)
    (choice,) = completion.choices
    assert (choice.text, choice.finish_reason, choice.index) == (" world", "stop", 0)
    assert completion.object == "text_completion" and completion.usage.prompt_tokens == 5
    assert desk.engine.submitted[0].sampling.max_tokens == 16


async def test_prompts_of_every_form():
    desk = Desk("x")
    tokens = desk.text.tokenizer.encode("ab", special=True)
    for prompt, expected in (
        ("ab", [tokens]),
        (["ab", "c"], [tokens, [99]]),
        ([7, 8, 9], [[7, 8, 9]]),
        ([[7, 8], [9]], [[7, 8], [9]]),
    ):
        before = len(desk.engine.submitted)
        reply = desk.json("completions", {"prompt": prompt, "n": 2})
        asked = desk.engine.submitted[before:]
        assert [list(generation.prompt) for generation in asked] == expected
        assert [choice["index"] for choice in reply["choices"]] == list(range(2 * len(expected)))
        assert reply["usage"]["prompt_tokens"] == sum(map(len, expected))


async def test_each_prompt_has_its_own_choices():
    def script(generation):
        name = "a" if generation.prompt[0] == 97 else "b"
        return [f"{name}{choice}" for choice in range(generation.n)]

    reply = Desk(script).json("completions", {"prompt": ["a", "b"], "n": 2})
    assert [choice["text"] for choice in reply["choices"]] == ["a0", "a1", "b0", "b1"]


async def test_echo_begins_with_the_prompt_and_its_logprobs():
    body = {"prompt": "ab", "echo": True, "logprobs": 1, "max_tokens": 2}
    (choice,) = Desk("cd").json("completions", body)["choices"]
    assert choice["text"] == "abcd"
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == "abcd"
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    assert logprobs["token_logprobs"][-1] == -0.5
    starts = [0]
    for token in logprobs["tokens"][:-1]:
        starts.append(starts[-1] + len(token))
    assert logprobs["text_offset"] == starts
    assert len(logprobs["top_logprobs"][-1]) == 1


async def test_a_prompt_can_be_scored_alone():
    body = {"prompt": "ab", "echo": True, "logprobs": 0, "max_tokens": 0}
    desk = Desk("cd")
    (choice,) = desk.json("completions", body)["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("ab", "length")
    assert desk.engine.submitted[0].sampling.max_tokens == 0
    assert choice["logprobs"]["tokens"][0] == "ab"  # one token of the vocabulary


async def test_a_stream_has_the_same_text():
    body = {"prompt": "ab", "echo": True, "logprobs": 0, "stream_options": {"include_usage": True}}
    *chunks, usage, done = Desk("cdé").events("completions", body)
    assert done == "[DONE]" and usage["usage"]["completion_tokens"] == 3
    assert usage["choices"] == [] and all(chunk["usage"] is None for chunk in chunks)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "abcdé"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    offsets = [
        offset
        for chunk in chunks
        if chunk["choices"][0]["logprobs"]
        for offset in chunk["choices"][0]["logprobs"]["text_offset"]
    ]
    assert offsets == [0, 2, 3, 4]


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "missing_required_parameter", "prompt"),
        ({"prompt": ""}, "invalid_value", "prompt"),
        ({"prompt": []}, "invalid_value", "prompt"),
        ({"prompt": ["a", ""]}, "invalid_value", "prompt"),
        ({"prompt": [1, "a"]}, "invalid_value", "prompt"),
        ({"prompt": [10**6]}, "invalid_value", "prompt"),
        ({"prompt": [True]}, "invalid_value", "prompt"),
        ({"prompt": "a", "suffix": "b"}, "unsupported_parameter", "suffix"),
        ({"prompt": "a", "best_of": 2}, "invalid_value", "best_of"),
        ({"prompt": "a", "max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"prompt": "a", "logprobs": True}, "invalid_value", "logprobs"),
        ({"prompt": ["a"] * 200, "n": 100}, "invalid_value", "n"),
        ({"prompt": "a", "messages": []}, "unknown_parameter", "messages"),
        ({"prompt": [1] * 300}, "context_length_exceeded", "prompt"),
    ],
)
async def test_what_is_wrong_is_refused_by_name(body, code, param):
    desk = Desk()
    with pytest.raises(BackendError) as found:
        desk.ask("completions", body)
    fault = found.value.fault()
    assert (fault.status, fault.code, fault.param) == (400, code, param)
