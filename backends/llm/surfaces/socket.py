"""A request on the gateway's WebSocket: the body of another surface in, JSON lines out.

Owns the form of those lines: {"choice", "text"} for each delta (with "tool_call" or "logprobs"
where there are), "finish" in a choice's last, and at the end {"usage"}. The gateway puts each line
into a message of the request.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from backends.llm.asked import Asked, Delta, Span, Usage
from backends.llm.errors import BadRequest, UnknownField
from backends.llm.surfaces import chat, completions, generate
from backends.llm.surfaces.chat import ChatStream, usage_body
from backends.llm.surfaces.events import error_body
from backends.llm.surfaces.logprobs import chat_logprobs
from backends.llm.surfaces.setting import Setting
from backends.llm.text import TextModel
from backends.llm.toolformat import ToolCall
from backends.wire import Fault

TYPE = "application/x-ndjson"


def parse(body: Any, text: TextModel, setting: Setting) -> Asked:
    """With `messages` a chat, with `text_input` a v2 generation, else a completion."""
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    for name in ("stream", "stream_options"):
        if body.get(name) is not None:
            raise UnknownField(f"'{name}' has no meaning on a socket.", param=name)
    if "text_input" in body:
        asked = generate.parse_stream(body, text, setting)
    else:
        surface = chat if "messages" in body else completions
        asked = surface.parse({**body, "stream": True}, text, setting)
    of_chat = asked.renderer if isinstance(asked.renderer, ChatStream) else None
    asked.renderer = Lines(of_chat)
    return asked


class Lines:
    type = TYPE

    def __init__(self, chat: ChatStream | None) -> None:
        # Finds the calls of tools, where there may be some.
        self._chat = chat
        self._spans: Sequence[Span] = ()

    def begin(self, version: str) -> bytes:
        return b""

    def moved(self, spans: Sequence[Span]) -> None:
        self._spans = spans

    def delta(self, delta: Delta) -> bytes:
        said: Sequence[str | ToolCall] = [delta.text] if delta.text else []
        finish = delta.finish
        if self._chat is not None:
            said, finish = self._chat.read(delta)
        lines: list[dict[str, Any]] = []
        for one in said:
            if isinstance(one, str):
                lines.append({"choice": delta.choice, "text": one})
            else:
                call = {"name": one.name, "arguments": one.arguments}
                lines.append({"choice": delta.choice, "text": "", "tool_call": call})
        if (delta.tokens or finish) and not lines:
            lines.append({"choice": delta.choice, "text": ""})
        if delta.tokens:
            lines[0]["logprobs"] = chat_logprobs(delta.tokens)["content"]
        if finish is not None:
            lines[-1]["finish"] = finish
        return b"".join(map(_line, lines))

    def end(self, usage: Usage) -> bytes:
        moved = {"model_versions": self._spans} if self._spans else {}
        return _line({"usage": usage_body(usage), **moved})

    def failed(self, fault: Fault) -> bytes:
        return _line(error_body(fault))


def _line(value: dict[str, Any]) -> bytes:
    return orjson.dumps(value) + b"\n"
