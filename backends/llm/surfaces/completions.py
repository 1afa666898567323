"""`/v1/completions`: a text in, its continuation out.

Owns that surface's fields and replies. Prompts may be strings or tokens, one or many; `echo` puts
the prompt before its continuation, with its log-probabilities where they are asked for.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import orjson

from backends.llm.asked import Asked, Delta, Span, TokenText, Usage
from backends.llm.errors import BadRequest
from backends.llm.surfaces.chat import usage_body
from backends.llm.surfaces.events import DONE, JSON, SSE, error_body, event
from backends.llm.surfaces.fields import FLAG, Fields, Kind, whole
from backends.llm.surfaces.format import take_format
from backends.llm.surfaces.logprobs import completion_logprobs
from backends.llm.surfaces.sampling import (
    MAX_TOKENS,
    MAX_TOP,
    accept_routing,
    take_choosing,
    take_stream,
)
from backends.llm.surfaces.setting import Setting
from backends.llm.text import TextModel
from backends.wire import Fault

MAX_PROMPTS, MAX_CHOICES = 256, 1024
# What OpenAI's API takes when nothing is said.
DEFAULT_TOKENS = 16
_PROMPT: Kind[Any] = Kind(
    "a string, a list of strings, a list of token ids or a list of such lists",
    lambda value: isinstance(value, (str, list)) and bool(value),
)


def parse(body: Any, text: TextModel, setting: Setting) -> Asked:
    """Raises BadRequest."""
    fields = Fields(body)
    model = setting.model_of(fields)
    prompts = take_prompts(fields, text)
    choosing = take_choosing(fields, text)
    limit = fields.take("max_tokens", whole(0, MAX_TOKENS), DEFAULT_TOKENS)
    logprobs = fields.take("logprobs", whole(0, MAX_TOP), None)
    echo = fields.take("echo", FLAG, False)
    stream, usage = take_stream(fields)
    mask = take_format(fields, text, setting.grammars)
    accept_routing(fields)
    fields.refuse("suffix", "this model continues texts, it fills no gaps", "")
    best_of = fields.take("best_of", whole(1, 128), choosing.n)
    if best_of != choosing.n:
        raise fields.wrong("best_of", "supported only as the same as n")
    fields.done()
    if not limit and not echo:
        raise fields.wrong("max_tokens", "0 has a meaning only with 'echo': true")
    if len(prompts) * choosing.n > MAX_CHOICES:
        raise fields.wrong("n", f"prompts times n is more than {MAX_CHOICES}")
    sampling = [
        replace(choosing.within(text.room(len(prompt), limit, "prompt")), logprobs=logprobs)
        for prompt in prompts
    ]
    kind = CompletionStream if stream else CompletionWhole
    return Asked(
        prompts=prompts,
        sampling=sampling,
        renderer=kind(model, len(prompts) * choosing.n, logprobs is not None, usage),
        n=choosing.n,
        stops=choosing.stops,
        mask=mask,
        priority=choosing.priority,
        echo=echo,
        prompt_logprobs=echo and logprobs is not None,
        begins=False,
    )


def take_prompts(fields: Fields, text: TextModel) -> list[list[int]]:
    value: Any = fields.need("prompt", _PROMPT)
    if isinstance(value, str):
        return [text.encode(value, "prompt", special=True)]
    if type(value[0]) is int:
        return [_tokens(fields, value, text, "prompt")]
    if len(value) > MAX_PROMPTS:
        raise fields.wrong("prompt", f"expected at most {MAX_PROMPTS} prompts")
    prompts = []
    for at, one in enumerate(value):
        if isinstance(one, str) and one:
            prompts.append(text.encode(one, "prompt", special=True))
        else:
            prompts.append(_tokens(fields, one, text, f"prompt[{at}]"))
    return prompts


def _tokens(fields: Fields, value: Any, text: TextModel, path: str) -> list[int]:
    size = text.vocabulary.size
    good = isinstance(value, list) and value
    if not good or not all(type(token) is int and 0 <= token < size for token in value):
        message = f"Invalid value for '{path}': expected {_PROMPT.expected}; ids are below {size}."
        raise BadRequest(message, param="prompt")
    tokens: list[int] = value
    return tokens


class _Completion:
    def __init__(self, model: str, choices: int, logprobs: bool, usage: bool) -> None:
        self._head: dict[str, Any] = {
            "id": f"cmpl-{Setting.new_id()}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self._choices, self._logprobs, self._usage = choices, logprobs, usage

    def begin(self, version: str) -> bytes:
        self._head["system_fingerprint"] = version
        return b""

    def moved(self, spans: Sequence[Span]) -> None:
        self._head["model_versions"] = spans

    def _choice(
        self, choice: int, text: str, tokens: Sequence[TokenText], offset: int, finish: str | None
    ) -> dict[str, Any]:
        with_logprobs = self._logprobs and (tokens or finish)
        return {
            "index": choice,
            "text": text,
            "logprobs": completion_logprobs(tokens, offset) if with_logprobs else None,
            "finish_reason": finish,
        }


class CompletionWhole(_Completion):
    """The reply as one JSON body."""

    type = JSON

    def __init__(self, model: str, choices: int, logprobs: bool, usage: bool) -> None:
        super().__init__(model, choices, logprobs, usage)
        self._texts: list[list[str]] = [[] for _ in range(choices)]
        self._tokens: list[list[TokenText]] = [[] for _ in range(choices)]
        self._finishes: list[str | None] = [None] * choices

    def delta(self, delta: Delta) -> bytes:
        self._texts[delta.choice].append(delta.text)
        self._tokens[delta.choice] += delta.tokens
        self._finishes[delta.choice] = delta.finish
        return b""

    def end(self, usage: Usage) -> bytes:
        choices = [
            self._choice(
                choice,
                "".join(self._texts[choice]),
                self._tokens[choice],
                0,
                self._finishes[choice],
            )
            for choice in range(self._choices)
        ]
        return orjson.dumps({**self._head, "choices": choices, "usage": usage_body(usage)})

    def failed(self, fault: Fault) -> bytes:
        return orjson.dumps(error_body(fault))


class CompletionStream(_Completion):
    """The reply as events, one a delta."""

    type = SSE

    def __init__(self, model: str, choices: int, logprobs: bool, usage: bool) -> None:
        super().__init__(model, choices, logprobs, usage)
        self._offsets = [0] * choices

    def delta(self, delta: Delta) -> bytes:
        offset = self._offsets[delta.choice]
        body = self._choice(delta.choice, delta.text, delta.tokens, offset, delta.finish)
        self._offsets[delta.choice] += sum(len(token.text) for token in delta.tokens)
        chunk: dict[str, Any] = {**self._head, "choices": [body]}
        if self._usage:
            chunk["usage"] = None
        return event(chunk)

    def end(self, usage: Usage) -> bytes:
        if not self._usage:
            return DONE
        return event({**self._head, "choices": [], "usage": usage_body(usage)}) + DONE

    def failed(self, fault: Fault) -> bytes:
        return event(error_body(fault)) + DONE
