"""`/v1/chat/completions`: a conversation in, the assistant's next message out.

Owns that surface's fields and replies, as OpenAI's API defines them and its SDKs read them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import orjson

from backends.llm.asked import Asked, Delta, Span, TokenText, Usage
from backends.llm.errors import BadRequest
from backends.llm.surfaces.events import DONE, JSON, SSE, error_body, event
from backends.llm.surfaces.fields import FLAG, TABLE, Absent, Fields, whole
from backends.llm.surfaces.format import take_format
from backends.llm.surfaces.logprobs import chat_logprobs
from backends.llm.surfaces.messages import take_messages
from backends.llm.surfaces.sampling import (
    MAX_TOKENS,
    MAX_TOP,
    accept_routing,
    take_choosing,
    take_stream,
)
from backends.llm.surfaces.setting import Setting
from backends.llm.surfaces.tools import take_tools
from backends.llm.text import TextModel
from backends.llm.toolformat import ToolCall, ToolFormat
from backends.wire import Fault

# Fields of the API that need what a text model does not have.
ABSENT = {
    "modalities": Absent("this model makes only text", (["text"],)),
    "audio": Absent("this model makes no audio"),
    "functions": Absent("it is deprecated; use tools", ([],)),
    "function_call": Absent("it is deprecated; use tool_choice", ("none",)),
    "prediction": Absent("nothing here is predicted from a draft"),
    "reasoning_effort": Absent("this model has no levels of reasoning", ("none",)),
    "verbosity": Absent("this model has no levels of verbosity", ("medium",)),
    "web_search_options": Absent("this model searches nothing"),
    "moderation": Absent("nothing is moderated here"),
}


def parse(body: Any, text: TextModel, setting: Setting) -> Asked:
    """Raises BadRequest."""
    fields = Fields(body)
    model = setting.model_of(fields)
    if text.template is None:
        message = f"model {model!r} has no chat template; use /v1/completions"
        raise BadRequest(message, param="messages")
    messages = take_messages(fields)
    choosing = take_choosing(fields, text)
    old = fields.take("max_tokens", whole(1, MAX_TOKENS), None)
    limit = fields.take("max_completion_tokens", whole(1, MAX_TOKENS), old)
    if old not in (None, limit):
        raise BadRequest("max_tokens and max_completion_tokens differ", param="max_tokens")
    logprobs = _take_logprobs(fields)
    stream, usage = take_stream(fields)
    tools = take_tools(fields, text.template, text, setting.grammars)
    mask = take_format(fields, text, setting.grammars)
    extra = fields.take("chat_template_kwargs", TABLE, {})
    accept_routing(fields)
    fields.refuse_all(ABSENT)
    fields.done()
    if tools.mask is not None and mask is not None:
        message = "tools that must be called or are strict, and response_format exclude each other"
        raise BadRequest(message, param="response_format")
    prompt = text.chat(messages, tools.offered, "messages", extra)
    sampling = choosing.within(text.room(len(prompt), limit, "messages"))
    kind = ChatStream if stream else ChatWhole
    return Asked(
        prompts=[prompt],
        sampling=[replace(sampling, logprobs=logprobs)],
        renderer=kind(model, choosing.n, tools.format, logprobs is not None, usage),
        n=choosing.n,
        stops=(*choosing.stops, *tools.stops),
        mask=tools.mask or mask,
        priority=choosing.priority,
    )


def _take_logprobs(fields: Fields) -> int | None:
    wanted = fields.take("logprobs", FLAG, False)
    top = fields.take("top_logprobs", whole(0, MAX_TOP), None)
    if top and not wanted:
        raise fields.wrong("top_logprobs", "it has a meaning only with 'logprobs': true")
    return (top or 0) if wanted else None


class _Chat:
    """What the two renderers share: the reply's head and the parsing of tools."""

    def __init__(
        self, model: str, n: int, tools: ToolFormat | None, logprobs: bool, usage: bool
    ) -> None:
        self._head: dict[str, Any] = {
            "id": f"chatcmpl-{Setting.new_id()}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": model,
        }
        self._n, self._logprobs, self._usage = n, logprobs, usage
        self._parsers = [tools.parser() if tools else None for _ in range(n)]
        self._calls = [0] * n

    def begin(self, version: str) -> bytes:
        self._head["system_fingerprint"] = version
        return b""

    def moved(self, spans: Sequence[Span]) -> None:
        self._head["model_versions"] = spans

    def read(self, delta: Delta) -> tuple[Sequence[str | ToolCall], str | None]:
        """What a delta says, for who writes it in another form, and why the choice ended."""
        said = self._said(delta)
        self._calls[delta.choice] += sum(isinstance(one, ToolCall) for one in said)
        return said, self._finish(delta)

    def _said(self, delta: Delta) -> Sequence[str | ToolCall]:
        parser = self._parsers[delta.choice]
        if parser is None:
            return [delta.text] if delta.text else []
        return parser.feed(delta.text, final=delta.finish is not None)

    def _call(self, choice: int, call: ToolCall) -> dict[str, Any]:
        self._calls[choice] += 1
        return {
            "id": f"call_{Setting.new_id()}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }

    def _finish(self, delta: Delta) -> str | None:
        called = delta.finish == "stop" and self._calls[delta.choice]
        return "tool_calls" if called else delta.finish


class ChatWhole(_Chat):
    """The reply as one JSON body."""

    type = JSON

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._texts: list[list[str]] = [[] for _ in range(self._n)]
        self._made: list[list[dict[str, Any]]] = [[] for _ in range(self._n)]
        self._tokens: list[list[TokenText]] = [[] for _ in range(self._n)]
        self._finishes: list[str | None] = [None] * self._n

    def delta(self, delta: Delta) -> bytes:
        choice = delta.choice
        for said in self._said(delta):
            if isinstance(said, str):
                self._texts[choice].append(said)
            else:
                self._made[choice].append(self._call(choice, said))
        self._tokens[choice] += delta.tokens
        self._finishes[choice] = self._finish(delta)
        return b""

    def end(self, usage: Usage) -> bytes:
        choices = [self._choice(choice) for choice in range(self._n)]
        return orjson.dumps({**self._head, "choices": choices, "usage": usage_body(usage)})

    def failed(self, fault: Fault) -> bytes:
        return orjson.dumps(error_body(fault))

    def _choice(self, choice: int) -> dict[str, Any]:
        text, calls = "".join(self._texts[choice]), self._made[choice]
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if calls and not text else text,
            "refusal": None,
        }
        if calls:
            message["tool_calls"] = calls
        return {
            "index": choice,
            "message": message,
            "logprobs": chat_logprobs(self._tokens[choice]) if self._logprobs else None,
            "finish_reason": self._finishes[choice],
        }


class ChatStream(_Chat):
    """The reply as events, one a delta."""

    type = SSE

    def begin(self, version: str) -> bytes:
        super().begin(version)
        self._head["object"] = "chat.completion.chunk"
        first = {"role": "assistant", "content": "", "refusal": None}
        return b"".join(self._chunk(choice, first) for choice in range(self._n))

    def delta(self, delta: Delta) -> bytes:
        choice, out = delta.choice, []
        tokens = delta.tokens
        for said in self._said(delta):
            if isinstance(said, str):
                out.append(self._chunk(choice, {"content": said}, tokens=tokens))
            else:
                place = self._calls[choice]
                call = {"index": place, **self._call(choice, said)}
                out.append(self._chunk(choice, {"tool_calls": [call]}, tokens=tokens))
            tokens = ()
        if tokens:
            out.append(self._chunk(choice, {}, tokens=tokens))
        if delta.finish is not None:
            out.append(self._chunk(choice, {}, self._finish(delta)))
        return b"".join(out)

    def end(self, usage: Usage) -> bytes:
        if not self._usage:
            return DONE
        return event({**self._head, "choices": [], "usage": usage_body(usage)}) + DONE

    def failed(self, fault: Fault) -> bytes:
        return event(error_body(fault)) + DONE

    def _chunk(
        self,
        choice: int,
        delta: dict[str, Any],
        finish: str | None = None,
        *,
        tokens: Sequence[TokenText] = (),
    ) -> bytes:
        body: dict[str, Any] = {
            "index": choice,
            "delta": delta,
            "logprobs": chat_logprobs(tokens) if tokens else None,
            "finish_reason": finish,
        }
        chunk: dict[str, Any] = {**self._head, "choices": [body]}
        if self._usage:
            chunk["usage"] = None
        return event(chunk)


def usage_body(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
    }
