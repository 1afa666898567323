"""/v1/responses: what maps onto a conversation, as OpenAI's SDK reads it."""

from __future__ import annotations

import orjson
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from backends.errors import BackendError
from tests.backends.fakes import eventually
from tests.backends.llm.asking import Desk
from tests.backends.llm.scripted import HERMES, byte_level, text_model

EVENT = TypeAdapter(ResponseStreamEvent)
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
CALL = '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'


async def test_a_response_is_whole():
    desk = Desk("Hello.")
    body = {"model": "m", "input": "Hi", "instructions": "Be brief.", "metadata": {"a": "b"}}
    response = Response.model_validate(desk.json("responses", body))
    assert (response.status, response.output_text) == ("completed", "Hello.")
    assert response.usage.input_tokens > 5 and response.usage.output_tokens == 6
    assert response.metadata == {"a": "b"} and response.instructions == "Be brief."
    prompt = byte_level().decode(list(desk.engine.submitted[0].prompt), skip_special_tokens=False)
    assert prompt.startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end"
    )


async def test_input_may_be_a_conversation():
    desk = Desk(text=text_model(HERMES, 2048))
    items = [
        {"role": "developer", "content": "a"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "b"}]},
        {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
         "content": [{"type": "output_text", "text": "c", "annotations": []}]},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "7"},
    ]  # fmt: skip
    desk.ask("responses", {"input": items})
    prompt = byte_level().decode(list(desk.engine.submitted[0].prompt), skip_special_tokens=False)
    assert prompt.count("<|im_start|>") == 6 and "tool\n7<|im_end|>" in prompt


async def test_an_answer_that_is_cut_is_incomplete():
    response = Desk("Hello.").json("responses", {"input": "Hi", "max_output_tokens": 2})
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["output"][0]["status"] == "incomplete"


async def test_events_tell_of_its_making():
    events = Desk("Hello.").events("responses", {"input": "Hi"})
    for event in events:
        EVENT.validate_python(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"] for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(deltas) == "Hello." and len(deltas) > 3
    whole = Response.model_validate(events[-1]["response"])
    assert whole.output_text == "Hello." and whole.usage.output_tokens == 6


async def asked(desk, body):
    id = desk.ask("responses", body)
    await eventually(lambda: bool(desk.engine.submitted or desk.connection.faults))
    desk.engine.finish()
    return desk.reply(id)[0]


async def test_calls_of_functions_are_items():
    desk = Desk(f"So.{CALL}", text_model(HERMES, 2048))
    response = orjson.loads(await asked(desk, {"input": "Hi", "tools": [TOOL]}))
    Response.model_validate(response)
    message, call = response["output"]
    assert message["content"][0]["text"] == "So."
    assert (call["type"], call["name"], call["arguments"]) == ("function_call", "f", '{"x":1}')
    from tests.backends.llm.asking import events

    desk = Desk(f"So.{CALL}", text_model(HERMES, 2048))
    found = events(await asked(desk, {"input": "Hi", "tools": [TOOL], "stream": True}))
    for event in found:
        EVENT.validate_python(event)
    done = [event for event in found if event["type"] == "response.function_call_arguments.done"]
    assert [event["arguments"] for event in done] == ['{"x":1}'] and done[0]["output_index"] == 1
    assert [item["type"] for item in found[-1]["response"]["output"]] == [
        "message",
        "function_call",
    ]


async def test_text_may_have_a_format():
    schema = {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]}
    form = {"type": "json_schema", "name": "n", "schema": schema, "strict": True}
    desk = Desk('{"a":null}')
    response = orjson.loads(await asked(desk, {"input": "Hi", "text": {"format": form}}))
    assert response["output"][0]["content"][0]["text"] == '{"a":null}'
    assert response["text"] == {"format": form}


@pytest.mark.parametrize(
    ("more", "code", "param"),
    [
        ({"input": None}, "missing_required_parameter", "input"),
        ({"input": []}, "invalid_value", "input"),
        ({"input": [{"type": "reasoning"}]}, "invalid_value", "input[0].type"),
        ({"previous_response_id": "resp_1"}, "unsupported_parameter", "previous_response_id"),
        ({"reasoning": {"effort": "low"}}, "unsupported_parameter", "reasoning"),
        ({"store": True}, "unsupported_parameter", "store"),
        ({"background": True}, "unsupported_parameter", "background"),
        ({"truncation": "auto"}, "unsupported_parameter", "truncation"),
        ({"include": ["x"]}, "unsupported_parameter", "include"),
        ({"max_tokens": 5}, "unknown_parameter", "max_tokens"),
        ({"text": {"verbosity": "low"}}, "unsupported_parameter", "text.verbosity"),
        ({"input": "x" * 400}, "context_length_exceeded", "input"),
    ],
)
async def test_what_does_not_map_is_refused_by_name(more, code, param):
    with pytest.raises(BackendError) as found:
        Desk().ask("responses", {"input": "Hi", **more})
    fault = found.value.fault()
    assert (fault.status, fault.code, fault.param) == (400, code, param)
