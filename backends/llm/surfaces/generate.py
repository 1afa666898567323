"""`/v2/models/{m}/generate` and `generate_stream`: Triton's and KServe's way to ask for text.

Owns those surfaces' fields and replies: {"text_input", "parameters"} in, {"model_name",
"model_version", "text_output"} out, whole or as one event a delta. Parameters may also stand beside
`text_input`, as Triton's backends have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from backends.llm.asked import Asked, Delta, Span, Usage
from backends.llm.surfaces.events import JSON, SSE, event
from backends.llm.surfaces.fields import FLAG, POSITIVE, TABLE, TEXT, Fields, Kind, whole
from backends.llm.surfaces.format import take_format
from backends.llm.surfaces.sampling import MAX_TOKENS, take_choosing
from backends.llm.surfaces.setting import Setting
from backends.llm.text import TextModel
from backends.wire import Fault

DEFAULT_TOKENS = 16
_PROMPT: Kind[str] = Kind(
    "a string that is not empty", lambda value: bool(TEXT.check(value) and value)
)


def parse(body: Any, text: TextModel, setting: Setting) -> Asked:
    return _parse(body, text, setting, stream=False)


def parse_stream(body: Any, text: TextModel, setting: Setting) -> Asked:
    return _parse(body, text, setting, stream=True)


def _parse(body: Any, text: TextModel, setting: Setting, *, stream: bool) -> Asked:
    outer = Fields(body)
    parameters = outer.take("parameters", TABLE, {})
    twice = sorted(parameters.keys() & body.keys())
    if twice:
        raise outer.wrong(twice[0], "it stands in 'parameters' too")
    fields = Fields({**{k: v for k, v in body.items() if k != "parameters"}, **parameters})
    prompt = fields.need("text_input", _PROMPT)
    id = fields.take("id", TEXT, None)
    # The gateway's own: it ends the call when the time is over.
    fields.take("timeout", POSITIVE, None)
    choosing = take_choosing(fields, text)
    limit = fields.take("max_tokens", whole(1, MAX_TOKENS), DEFAULT_TOKENS)
    mask = take_format(fields, text, setting.grammars)
    if fields.take("stream", FLAG, stream) != stream:
        raise fields.wrong("stream", "it is the path that says so: generate or generate_stream")
    if choosing.n != 1:
        raise fields.wrong("n", "expected 1: there is one text_output")
    fields.done()
    tokens = text.encode(prompt, "text_input", special=True)
    return Asked(
        prompts=[tokens],
        sampling=[choosing.within(text.room(len(tokens), limit, "text_input"))],
        renderer=(GenerateStream if stream else GenerateWhole)(setting.model, id),
        stops=choosing.stops,
        mask=mask,
        priority=choosing.priority,
        begins=False,
    )


class GenerateWhole:
    type = JSON

    def __init__(self, model: str, id: str | None) -> None:
        self._head: dict[str, Any] = {"model_name": model}
        if id is not None:
            self._head["id"] = id
        self._texts: list[str] = []

    def begin(self, version: str) -> bytes:
        self._head["model_version"] = version
        return b""

    def moved(self, spans: Sequence[Span]) -> None:
        self._head["model_versions"] = spans

    def delta(self, delta: Delta) -> bytes:
        self._texts.append(delta.text)
        return b""

    def end(self, usage: Usage) -> bytes:
        return orjson.dumps({**self._head, "text_output": "".join(self._texts)})

    def failed(self, fault: Fault) -> bytes:
        return orjson.dumps({"error": fault.message})


class GenerateStream(GenerateWhole):
    type = SSE

    def delta(self, delta: Delta) -> bytes:
        if not delta.text:
            return b""
        return event({**self._head, "text_output": delta.text})

    def end(self, usage: Usage) -> bytes:
        # By then most streams have ended with their last text; who was moved is told in any case.
        return event({**self._head, "text_output": ""}) if "model_versions" in self._head else b""

    def failed(self, fault: Fault) -> bytes:
        return event({"error": fault.message})
