"""The messages of a conversation, in the form that chat templates take.

Owns what a message may be: its role, its content as text (or parts of text), the calls that it made
or answers. Raises BadRequest, naming the message and the field.
"""

from __future__ import annotations

from typing import Any

import orjson

from backends.llm.errors import UnsupportedField
from backends.llm.surfaces.fields import ANY, LIST, TABLE, TEXT, Fields, Kind, one_of

MAX_MESSAGES = 100_000
_CONTENT: Kind[Any] = Kind(
    "a string or a list of parts", lambda value: isinstance(value, (str, list))
)
# "developer" is what OpenAI calls a system message now; templates know the older name.
_ROLES = one_of("system", "developer", "user", "assistant", "tool")


def take_messages(fields: Fields) -> list[dict[str, Any]]:
    """`messages`, at least one."""
    messages = fields.need("messages", LIST)
    if not 0 < len(messages) <= MAX_MESSAGES:
        raise fields.wrong("messages", f"expected 1 to {MAX_MESSAGES} messages")
    return [_message(Fields(body, f"messages[{at}]")) for at, body in enumerate(messages)]


def _message(fields: Fields) -> dict[str, Any]:
    role = fields.need("role", _ROLES)
    message: dict[str, Any] = {"role": "system" if role == "developer" else role}
    calls = fields.take("tool_calls", LIST, []) if role == "assistant" else []
    if fields.has("content") or not calls:
        message["content"] = content_text(fields.need("content", _CONTENT), fields, "text")
    else:
        message["content"] = ""
    if calls:
        message["tool_calls"] = [
            _call(Fields(call, f"{fields.named('tool_calls')}[{at}]"))
            for at, call in enumerate(calls)
        ]
    if role == "tool":
        message["tool_call_id"] = fields.need("tool_call_id", TEXT)
    if name := fields.take("name", TEXT, None):
        message["name"] = name
    fields.refuse("type", "a message has no type", "message", "text")
    if role == "assistant":
        fields.accept(("refusal", "annotations"))
        fields.refuse("audio", "this model hears nothing")
        fields.refuse("function_call", "it is deprecated; use tool_calls")
    fields.done()
    return message


def content_text(content: str | list[Any], fields: Fields, *types: str) -> str:
    """The text of a message's content; its parts are lines. `types`: of parts that are text."""
    if isinstance(content, str):
        return content
    texts = []
    for at, body in enumerate(content):
        part = Fields(body, f"{fields.named('content')}[{at}]")
        kind = part.need("type", TEXT)
        if kind not in types:
            param = part.named("type")
            raise UnsupportedField(f"'{param}': this model takes text, not {kind!r}.", param=param)
        texts.append(part.need("text", TEXT))
        part.accept(("annotations", "logprobs"))
        part.done()
    return "\n".join(texts)


def _call(fields: Fields) -> dict[str, Any]:
    fields.accept(("index",))
    id = fields.take("id", TEXT, "")
    fields.take("type", one_of("function"), "function")
    function = Fields(fields.need("function", TABLE), fields.named("function"))
    name = function.need("name", TEXT)
    arguments: Any = function.take("arguments", ANY, "{}")
    if isinstance(arguments, str):
        # Templates write the arguments themselves, as an object.
        try:
            arguments = orjson.loads(arguments)
        except orjson.JSONDecodeError:
            raise function.wrong("arguments", "expected JSON in a string") from None
    function.done()
    fields.done()
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
