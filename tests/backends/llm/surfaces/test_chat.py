"""/v1/chat/completions: every field has its effect or its refusal, replies are as OpenAI's."""

from __future__ import annotations

import openai
import orjson
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from backends.errors import BackendError
from tests.backends.llm.asking import Desk
from tests.backends.llm.scripted import CHATML, HERMES, LLAMA, byte_level, text_model
from tests.backends.llm.structured.walks import permits

HI = {"messages": [{"role": "user", "content": "Hi"}]}
TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "parameters": {"type": "object", "properties": {"x": {"enum": [1, 2]}}, "required": ["x"]},
    },
}
CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'


def spelt(prompt):
    """With special tokens by their names."""
    return byte_level().decode(list(prompt), skip_special_tokens=False)


def chunks(desk, body):
    *found, done = desk.events("chat", body)
    assert done == "[DONE]"
    for chunk in found:
        ChatCompletionChunk.model_validate(chunk)
    return found


async def test_a_reply_is_whole():
    desk = Desk("Hello, é.")
    desk.engine.cached = 5
    reply = desk.json("chat", {**HI, "model": "alias"})
    completion = ChatCompletion.model_validate(reply)
    assert (completion.model, completion.object) == ("alias", "chat.completion")
    (choice,) = completion.choices
    assert (choice.message.content, choice.finish_reason) == ("Hello, é.", "stop")
    assert choice.message.role == "assistant" and choice.logprobs is None
    usage = completion.usage
    (generation,) = desk.engine.submitted
    prompt = desk.text.tokenizer.encode(
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", special=False
    )
    assert list(generation.prompt) == prompt and usage.prompt_tokens == len(prompt)
    assert usage.completion_tokens == len(desk.text.tokenizer.encode("Hello, é.", special=False))
    assert usage.prompt_tokens_details.cached_tokens == 5
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


async def test_a_stream_is_the_same_in_chunks():
    body = {**HI, "stream_options": {"include_usage": True}}
    first, *middle, last, usage = chunks(Desk("Hello, é."), body)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in middle)
    assert text == "Hello, é." and len(middle) > 3
    assert all(c["choices"][0]["finish_reason"] is None and c["usage"] is None for c in middle)
    assert last["choices"][0] == {
        "index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop",
    }  # fmt: skip
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] > 3
    assert len({chunk["id"] for chunk in (first, *middle, last, usage)}) == 1
    without = chunks(Desk("x"), HI)
    assert all("usage" not in chunk for chunk in without)


async def test_choices_have_their_own_texts():
    desk = Desk(lambda generation: ["one", "two", "three!"])
    reply = desk.json("chat", {**HI, "n": 3})
    assert [c["message"]["content"] for c in reply["choices"]] == ["one", "two", "three!"]
    assert [c["index"] for c in reply["choices"]] == [0, 1, 2]
    found = chunks(Desk(lambda generation: ["one", "two", "three!"]), {**HI, "n": 3})
    texts = ["", "", ""]
    for chunk in found:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get("content") or ""
    assert texts == ["one", "two", "three!"]


async def test_sampling_fields_reach_the_engine():
    desk = Desk()
    body = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.1,
        "presence_penalty": 0.3, "frequency_penalty": -0.4, "seed": -3, "min_tokens": 2,
        "max_tokens": 9, "stop_token_ids": [5], "logit_bias": {"7": -100, "9": 1.5},
        "stop": ["x", "yy"], "priority": 3, "user": "u", "metadata": {"a": "b"},
        "prompt_cache_key": "k", "safety_identifier": "s", "store": False,
        "service_tier": "auto", "modalities": ["text"], "temperature_": None,
    }  # fmt: skip
    desk.ask("chat", {**HI, **body})
    (generation,) = desk.engine.submitted
    sampling = generation.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 7)
    assert (sampling.min_p, sampling.repetition_penalty) == (0.1, 1.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.3, -0.4)
    assert (sampling.seed, sampling.min_tokens, sampling.max_tokens) == (-3, 2, 9)
    assert sampling.stop_ids == {5} | desk.text.stop_ids
    assert dict(sampling.logit_bias) == {7: -100.0, 9: 1.5}
    assert generation.priority == 3
    desk.ask("chat", {**HI, "ignore_eos": True, "top_k": -1}, priority=2, tenant="t")
    later = desk.engine.submitted[-1]
    assert later.sampling.stop_ids == frozenset() and later.sampling.top_k == 0
    assert (later.priority, later.tenant) == (-2, "t")
    assert later.sampling.max_tokens == desk.engine.max_context - len(later.prompt)
    desk.ask("chat", {**HI, "max_tokens": 6, "max_completion_tokens": 6})
    assert desk.engine.submitted[-1].sampling.max_tokens == 6


async def test_stop_strings_end_the_engine_s_work():
    desk = Desk("Hello END of it")
    reply = desk.json("chat", {**HI, "stop": "END"})
    (choice,) = reply["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello ", "stop")
    key = desk.engine.submitted[0].key
    assert desk.engine.cancelled == [(key, 0), key] and not desk.engine.busy


async def test_length_is_said():
    reply = Desk("Hello").json("chat", {**HI, "max_tokens": 2})
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] == 2


async def test_logprobs_whole_and_streamed():
    body = {**HI, "logprobs": True, "top_logprobs": 2}
    reply = Desk("é!").json("chat", body)
    content = reply["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == ["é", "!"]
    assert content[0]["bytes"] == list("é".encode()) and content[0]["logprob"] == -0.5
    assert len(content[0]["top_logprobs"]) == 2
    streamed = [
        entry
        for chunk in chunks(Desk("é!"), body)
        for choice in chunk["choices"]
        if choice["logprobs"]
        for entry in choice["logprobs"]["content"]
    ]
    assert streamed == content
    assert Desk("x").json("chat", {**HI, "logprobs": True})["choices"][0]["logprobs"]["content"]


async def test_messages_of_every_form():
    desk = Desk(text=text_model(HERMES, 2048))
    desk.ask(
        "chat",
        {
            "messages": [
                {"role": "developer", "content": [{"type": "text", "text": t} for t in "ab"]},
                {"role": "user", "content": "Hi", "name": "me"},
                {"role": "assistant", "content": None, "refusal": None, "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                ]},
                {"role": "tool", "content": "7", "tool_call_id": "1"},
            ]
        },
    )  # fmt: skip
    prompt = spelt(desk.engine.submitted[0].prompt)
    assert prompt.startswith("<|im_start|>system\na\nb<|im_end|>\n<|im_start|>user\nHi")
    assert "<|im_start|>tool\n7<|im_end|>" in prompt


async def test_json_object_and_schema_hold_the_answer():
    for form in (
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": {
            "type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"],
        }}},
        {"type": "regex", "pattern": r'\{"a": \d\}'},
    ):  # fmt: skip
        desk = Desk('{"a": 1}')
        id = desk.ask("chat", {**HI, "response_format": form})
        await settle(desk)
        desk.engine.finish()
        reply = orjson.loads(desk.reply(id)[0])
        assert reply["choices"][0]["message"]["content"] == '{"a": 1}'
        assert reply["choices"][0]["finish_reason"] == "stop"
    desk = Desk("x")
    desk.ask("chat", {**HI, "response_format": {"type": "text"}})
    assert desk.engine.submitted[0].mask is None


async def settle(desk):
    from tests.backends.fakes import eventually

    await eventually(lambda: bool(desk.engine.submitted or desk.connection.faults))


async def asked(desk, body):
    id = desk.ask("chat", body)
    await settle(desk)
    desk.engine.finish()
    return desk.reply(id)[0]


async def test_tools_are_offered_and_calls_are_found():
    desk = Desk(f"Let me see.\n{CALL}", text_model(HERMES, 2048))
    reply = orjson.loads(await asked(desk, {**HI, "tools": [TOOL]}))
    ChatCompletion.model_validate(reply)
    (choice,) = reply["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see."
    (call,) = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "f", "arguments": '{"x":1}'} and call["id"]
    prompt = spelt(desk.engine.submitted[0].prompt)
    assert '"name": "f"' in prompt


async def test_tool_calls_stream_with_their_index():
    from tests.backends.llm.asking import events

    desk = Desk(f"{CALL}\n{CALL}", text_model(HERMES, 2048))
    *found, _ = events(await asked(desk, {**HI, "tools": [TOOL], "stream": True}))
    calls = [call for chunk in found for call in chunk["choices"][0]["delta"].get("tool_calls", ())]
    assert [call["index"] for call in calls] == [0, 1] and calls[0]["id"] != calls[1]["id"]
    assert found[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert not any(chunk["choices"][0]["delta"].get("content") for chunk in found[1:])


async def test_a_call_can_be_required_and_parallel_ones_forbidden():
    for choice in ("required", {"type": "function", "function": {"name": "f"}}):
        desk = Desk(CALL, text_model(HERMES, 2048))
        reply = orjson.loads(await asked(desk, {**HI, "tools": [TOOL], "tool_choice": choice}))
        assert reply["choices"][0]["finish_reason"] == "tool_calls"
        assert desk.engine.submitted[0].mask is not None
    said = '{"name": "f", "parameters": {"x": 2}}'
    desk = Desk(said, text_model(LLAMA, 2048))
    reply = orjson.loads(await asked(desk, {**HI, "tools": [TOOL], "tool_choice": "required"}))
    assert reply["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] == '{"x":2}'
    desk = Desk(f"{CALL}\n{CALL}", text_model(HERMES, 2048))
    body = {**HI, "tools": [TOOL], "parallel_tool_calls": False}
    reply = orjson.loads(await asked(desk, body))
    assert len(reply["choices"][0]["message"]["tool_calls"]) == 1
    desk = Desk(CALL, text_model(HERMES, 2048))
    reply = orjson.loads(await asked(desk, {**HI, "tools": [TOOL], "tool_choice": "none"}))
    assert reply["choices"][0]["message"]["content"] == CALL


class Where(BaseModel):
    city: str
    near: list[Where] = []


STRICT = openai.pydantic_function_tool(Where)


@pytest.mark.parametrize("template", [HERMES, LLAMA])
@pytest.mark.parametrize("parallel", [True, False])
async def test_calls_of_strict_tools_are_held_to_their_schema(template, parallel):
    key, (opening, closing) = (
        ("arguments", ("<tool_call>", "</tool_call>"))
        if template == HERMES
        else ("parameters", ("", ""))
    )
    good = f'{opening}{{"name": "Where", "{key}": {{"city": "Rome", "near": []}}}}{closing}'
    text = text_model(template, 2048)
    body = {**HI, "tools": [STRICT, TOOL], "parallel_tool_calls": parallel}
    desk = Desk(good, text)
    reply = orjson.loads(await asked(desk, body))
    (call,) = reply["choices"][0]["message"]["tool_calls"]
    assert orjson.loads(call["function"]["arguments"]) == {"city": "Rome", "near": []}
    mask = desk.engine.submitted[0].mask
    assert permits(mask, good) and permits(mask, "1 < 2, so no call.") and permits(mask, "")
    assert not permits(mask, good.replace('"Rome"', "7"))
    assert not permits(mask, good.replace("Where", "Elsewhere"))
    # What is not strict may have any arguments, and is still a tool that there is.
    assert permits(mask, f'{opening}{{"name": "f", "{key}": {{"y": 9}}}}{closing}')
    if template == HERMES:
        assert permits(mask, f"So: {good}\n{good}") == parallel
    assert not permits(mask, f" {opening}{{oh no}}{closing}")


async def test_strict_that_asks_for_nothing():
    for strict in (None, False):
        desk = Desk("Hi", text_model(HERMES, 2048))
        tool = {**TOOL, "function": {**TOOL["function"], "strict": strict}}
        await asked(desk, {**HI, "tools": [tool]})
        assert desk.engine.submitted[0].mask is None


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({}, 400, "missing_required_parameter", "messages"),
        ({"messages": []}, 400, "invalid_value", "messages"),
        (
            {**HI, "max_tokens": 5, "max_completion_tokens": 6},
            400,
            "invalid_value",
            "max_tokens",
        ),
        (
            {"messages": [{"role": "user"}]},
            400,
            "missing_required_parameter",
            "messages[0].content",
        ),
        ({"messages": [{"role": "bot", "content": "x"}]}, 400, "invalid_value", "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            400,
            "unsupported_parameter",
            "messages[0].content[0].type",
        ),
        (
            {"messages": [{"role": "user", "content": "x", "x": 1}]},
            400,
            "unknown_parameter",
            "messages[0].x",
        ),
        ({**HI, "temprature": 1}, 400, "unknown_parameter", "temprature"),
        ({**HI, "temperature": 2.5}, 400, "invalid_value", "temperature"),
        ({**HI, "temperature": "hot"}, 400, "invalid_value", "temperature"),
        ({**HI, "temperature": True}, 400, "invalid_value", "temperature"),
        ({**HI, "top_p": 0}, 400, "invalid_value", "top_p"),
        ({**HI, "n": 0}, 400, "invalid_value", "n"),
        ({**HI, "max_tokens": 0}, 400, "invalid_value", "max_tokens"),
        ({**HI, "stop": ["a", ""]}, 400, "invalid_value", "stop"),
        ({**HI, "logit_bias": {"x": 1}}, 400, "invalid_value", "logit_bias"),
        ({**HI, "logit_bias": {"1": 101}}, 400, "invalid_value", "logit_bias"),
        ({**HI, "stop_token_ids": [10**7]}, 400, "invalid_value", "stop_token_ids"),
        ({**HI, "top_logprobs": 2}, 400, "invalid_value", "top_logprobs"),
        ({**HI, "logprobs": True, "top_logprobs": 21}, 400, "invalid_value", "top_logprobs"),
        ({**HI, "stream_options": {}}, 400, "invalid_value", "stream_options"),
        (
            {**HI, "stream": True, "stream_options": {"x": 1}},
            400,
            "unknown_parameter",
            "stream_options.x",
        ),
        ({**HI, "store": True}, 400, "unsupported_parameter", "store"),
        ({**HI, "reasoning_effort": "low"}, 400, "unsupported_parameter", "reasoning_effort"),
        ({**HI, "audio": {}}, 400, "unsupported_parameter", "audio"),
        ({**HI, "modalities": ["audio"]}, 400, "unsupported_parameter", "modalities"),
        ({**HI, "functions": [{}]}, 400, "unsupported_parameter", "functions"),
        ({**HI, "service_tier": "flex"}, 400, "unsupported_parameter", "service_tier"),
        ({**HI, "response_format": {"type": "xml"}}, 400, "invalid_value", "response_format.type"),
        (
            {**HI, "response_format": {"type": "json_object", "x": 1}},
            400,
            "unknown_parameter",
            "response_format.x",
        ),
        ({**HI, "tool_choice": "required"}, 400, "invalid_value", "tool_choice"),
        (
            {"messages": [{"role": "user", "content": "x" * 400}]},
            400,
            "context_length_exceeded",
            "messages",
        ),
        ({**HI, "max_tokens": 250}, 400, "context_length_exceeded", "messages"),
        ([], 400, "invalid_value", None),
        (b"{", 400, "invalid_value", None),
    ],
)
async def test_what_is_wrong_is_refused_by_name(body, status, code, param):
    desk = Desk()
    with pytest.raises(BackendError) as found:
        desk.ask("chat", body)
    fault = found.value.fault()
    assert (fault.status, fault.code, fault.param) == (status, code, param)
    assert not fault.retryable and not desk.engine.submitted
    assert param is None or param in fault.message or "context length" in fault.message
    assert (len(desk.calls), desk.calls.failed) == (0, 1)


@pytest.mark.parametrize(
    ("more", "template", "code", "param"),
    [
        ({"tools": [TOOL]}, CHATML, "unsupported_parameter", "tools"),
        ({"tools": [{"type": "custom"}]}, HERMES, "invalid_value", "tools[0].type"),
        (
            {"tools": [{**TOOL, "function": {}}]},
            HERMES,
            "missing_required_parameter",
            "tools[0].function.name",
        ),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            HERMES,
            "invalid_value",
            "tool_choice.function.name",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": {"not": {}}},
                }
            },
            CHATML,
            "invalid_schema",
            "response_format.json_schema.schema",
        ),
        (
            {
                "tools": [
                    TOOL,
                    {
                        "type": "function",
                        "function": {"name": "g", "strict": True, "parameters": {"not": {}}},
                    },
                ]
            },
            HERMES,
            "invalid_schema",
            "tools[1].function.parameters",
        ),
        (
            {"tools": [STRICT], "response_format": {"type": "json_object"}},
            HERMES,
            "invalid_value",
            "response_format",
        ),
        (
            {
                "guided_regex": "(",
            },
            CHATML,
            "invalid_schema",
            "guided_regex",
        ),
        (
            {"guided_regex": "a", "response_format": {"type": "json_object"}},
            CHATML,
            "invalid_value",
            "guided_regex",
        ),
    ],
)
async def test_what_takes_a_thread_is_refused_by_name_too(more, template, code, param):
    desk = Desk(text=text_model(template, 2048))
    id = desk.ask("chat", {**HI, **more})
    await settle(desk)
    fault = desk.connection.faults[id]
    assert (fault.status, fault.code, fault.param) == (400, code, param)


async def test_a_model_without_a_template_chats_not():
    desk = Desk(text=text_model(None))
    with pytest.raises(BackendError, match="no chat template"):
        desk.ask("chat", HI)


async def test_over_long_prompts_are_told_as_openai_does():
    desk = Desk()
    with pytest.raises(BackendError, match=r"maximum context length is 256 tokens. However, you"):
        desk.ask("chat", {"messages": [{"role": "user", "content": "x" * 400}], "max_tokens": 3})
