"""`/v1/responses`, where it maps onto a conversation that is sent whole: its fields.

Owns the translation to what the chat surface knows. Nothing is stored between responses, so what
refers to stored ones is refused.
"""

from __future__ import annotations

from typing import Any

import orjson

from backends.llm.asked import Asked
from backends.llm.errors import BadRequest
from backends.llm.surfaces.fields import ANY, LIST, TABLE, TEXT, Absent, Fields, Kind, one_of, whole
from backends.llm.surfaces.format import Masks, take_schema
from backends.llm.surfaces.messages import content_text
from backends.llm.surfaces.response_events import Items, ResponseStream, ResponseWhole
from backends.llm.surfaces.sampling import (
    MAX_TOKENS,
    accept_routing,
    take_choosing,
    take_stream,
)
from backends.llm.surfaces.setting import Setting
from backends.llm.surfaces.tools import Tools, take_tools
from backends.llm.text import TextModel

_INPUT: Kind[Any] = Kind(
    "a string or a list of items", lambda value: isinstance(value, (str, list)) and bool(value)
)
_CONTENT: Kind[Any] = Kind(
    "a string or a list of parts", lambda value: isinstance(value, (str, list))
)
_ROLES = one_of("system", "developer", "user", "assistant")
_UNSTORED = "nothing is stored here; send the whole conversation"
ABSENT = {
    "previous_response_id": Absent(_UNSTORED),
    "conversation": Absent(_UNSTORED),
    "prompt": Absent("there are no stored prompts"),
    "reasoning": Absent(
        "this model has no levels of reasoning", ({}, {"effort": "none"}, {"effort": None})
    ),
    "max_tool_calls": Absent("tools are called by the client"),
    "context_management": Absent("conversations are taken as they are", ([],)),
    "include": Absent("there is nothing more to include", ([],)),
    "truncation": Absent("an input that is too long is refused", ("disabled",)),
    "background": Absent("a response is answered at once", (False,)),
    "top_logprobs": Absent("see /v1/chat/completions", (0,)),
    "moderation": Absent("nothing is moderated here"),
}


def parse(body: Any, text: TextModel, setting: Setting) -> Asked:
    """Raises BadRequest."""
    fields = Fields(body)
    model = setting.model_of(fields)
    if text.template is None:
        raise BadRequest(f"model {model!r} has no chat template", param="input")
    instructions = fields.take("instructions", TEXT, None)
    messages = _take_input(fields)
    if instructions is not None:
        messages.insert(0, {"role": "system", "content": instructions})
    choosing = take_choosing(fields, text)
    if choosing.n != 1:
        raise fields.wrong("n", "a response is one")
    limit = fields.take("max_output_tokens", whole(1, MAX_TOKENS), None)
    stream, _ = take_stream(fields)
    tools = _take_tools(fields, text, setting)
    mask = _take_text(fields, text, setting)
    if tools.mask is not None and mask is not None:
        message = "tools that must be called or are strict, and text.format exclude each other"
        raise BadRequest(message, param="text.format")
    accept_routing(fields)
    fields.refuse_all(ABSENT)
    fields.done()
    prompt = text.chat(messages, tools.offered, "input")
    sampling = choosing.within(text.room(len(prompt), limit, "input"))
    head = {
        "id": f"resp_{Setting.new_id()}",
        "object": "response",
        "model": model,
        "error": None,
        "incomplete_details": None,
        "instructions": instructions,
        "max_output_tokens": limit,
        "metadata": body.get("metadata") or {},
        "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "temperature": sampling.temperature,
        "text": body.get("text") or {"format": {"type": "text"}},
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": body.get("tools") or [],
        "top_p": sampling.top_p,
        "truncation": "disabled",
    }
    return Asked(
        prompts=[prompt],
        sampling=[sampling],
        renderer=(ResponseStream if stream else ResponseWhole)(head, Items(tools.format)),
        stops=(*choosing.stops, *tools.stops),
        mask=tools.mask or mask,
        priority=choosing.priority,
    )


def _take_input(fields: Fields) -> list[dict[str, Any]]:
    items = fields.need("input", _INPUT)
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    return [_item(Fields(item, f"input[{at}]")) for at, item in enumerate(items)]


def _item(fields: Fields) -> dict[str, Any]:
    kind = fields.take("type", TEXT, "message")
    fields.accept(("id", "status"))
    if kind == "message":
        role = fields.need("role", _ROLES)
        content = content_text(
            fields.need("content", _CONTENT), fields, "input_text", "output_text", "text"
        )
        fields.done()
        return {"role": "system" if role == "developer" else role, "content": content}
    if kind == "function_call":
        name, arguments = fields.need("name", TEXT), fields.need("arguments", TEXT)
        id = fields.need("call_id", TEXT)
        try:
            function = {"name": name, "arguments": orjson.loads(arguments)}
        except orjson.JSONDecodeError:
            raise fields.wrong("arguments", "expected JSON in a string") from None
        fields.done()
        call = {"id": id, "type": "function", "function": function}
        return {"role": "assistant", "content": "", "tool_calls": [call]}
    if kind == "function_call_output":
        id, output = fields.need("call_id", TEXT), fields.need("output", TEXT)
        fields.done()
        return {"role": "tool", "tool_call_id": id, "content": output}
    raise fields.wrong("type", f"items of type {kind!r} are not supported")


def _take_tools(fields: Fields, text: TextModel, setting: Setting) -> Tools:
    """The chat surface's tools have their function one level deeper."""
    tools = fields.take("tools", LIST, [])
    choice: Any = fields.take("tool_choice", ANY, None)
    parallel: Any = fields.take("parallel_tool_calls", ANY, None)
    deeper = [_deeper(tool) for tool in tools]
    if isinstance(choice, dict) and "name" in choice:
        rest = {key: value for key, value in choice.items() if key != "name"}
        choice = {**rest, "function": {"name": choice["name"]}}
    said = {"tools": deeper, "tool_choice": choice, "parallel_tool_calls": parallel}
    assert text.template is not None
    return take_tools(Fields(said), text.template, text, setting.grammars)


def _deeper(tool: Any) -> Any:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        return tool  # which the chat surface refuses by name
    return {
        "type": "function",
        "function": {key: value for key, value in tool.items() if key != "type"},
    }


def _take_text(fields: Fields, text: TextModel, setting: Setting) -> Masks | None:
    if not fields.has("text"):
        return None
    table = Fields(fields.take("text", TABLE, {}), "text")
    mask: Masks | None = None
    if table.has("format"):
        form = Fields(table.take("format", TABLE, {}), "text.format")
        kind = form.need("type", one_of("text", "json_object", "json_schema"))
        if kind == "json_object":
            mask = setting.grammars.json(text.vocabulary)
        elif kind == "json_schema":
            mask = take_schema(form, text, setting.grammars)
        form.done()
    table.refuse("verbosity", "this model has no levels of verbosity", "medium")
    table.done()
    return mask
