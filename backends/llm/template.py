"""A model's chat template: messages and tools in, the text that the model continues out.

Owns the sandbox in which the checkpoint's Jinja template runs, with what `transformers` offers to
templates and nothing more. Thread-safe. Invariant: what a template raises is the client's 400 where
the template says so itself (`raise_exception`), and a clear error of the model otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import orjson
from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from backends.errors import ModelFailed
from backends.llm.errors import BadRequest, BadTokenizer
from backends.llm.toolformat import ToolFormat, find_format

_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


class _Raised(Exception):
    """The template refused its messages."""


class ChatTemplate:
    def __init__(self, source: str, tokens: Mapping[str, str], tool_source: str | None) -> None:
        """`tokens`: bos_token and the like; `tool_source`: the template to take with tools, None
        where there is but one. Raises BadTokenizer."""
        environment = _environment()
        try:
            self._plain = environment.from_string(source)
            self._with_tools = environment.from_string(tool_source or source)
        except TemplateError as error:
            raise BadTokenizer(f"the chat template is no Jinja template: {error}") from error
        self._tokens = dict(tokens)
        # How this model writes calls of tools; None where its template takes none.
        self.tools: ToolFormat | None = find_format(tool_source or source)

    @classmethod
    def load(cls, folder: Path) -> ChatTemplate | None:
        """None for a model that has no chat template. Raises BadTokenizer."""
        try:
            config = orjson.loads((folder / "tokenizer_config.json").read_bytes())
        except FileNotFoundError:
            config = {}
        except (OSError, ValueError) as error:
            raise BadTokenizer(f"{folder}/tokenizer_config.json: {error}") from error
        found = config.get("chat_template")
        own = folder / "chat_template.jinja"
        if own.is_file():
            found = own.read_text(encoding="utf-8")
        if not found:
            return None
        named = {"default": found} if isinstance(found, str) else _by_name(found)
        if "default" not in named:
            raise BadTokenizer("tokenizer_config.json: chat_template has no default")
        tokens = {name: text for name in _TOKENS if (text := _content(config.get(name)))}
        return cls(named["default"], tokens, named.get("tool_use"))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt, up to where the assistant speaks. `extra`: further variables of the
        template. Raises BadRequest where the template refuses the messages, else ModelFailed."""
        template = self._with_tools if tools else self._plain
        own = {
            "messages": messages,
            "tools": tools or None,
            "documents": None,
            "add_generation_prompt": True,
        }
        for name in own.keys() & (extra or {}).keys():
            message = f"chat_template_kwargs: {name!r} is set by the request itself"
            raise BadRequest(message, param="chat_template_kwargs")
        try:
            return template.render({**self._tokens, **(extra or {}), **own})
        except _Raised as error:
            message = f"the model's chat template refuses this: {error}"
            raise BadRequest(message, param="messages") from error
        except Exception as error:  # the template is code that came with the model
            what = f"{type(error).__name__}: {error}"
            raise ModelFailed(f"the model's chat template failed: {what}") from error


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = time.strftime
    return environment


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    """As `json.dumps`, spaces included: models saw tools written so. HTML is not escaped."""
    import json

    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> NoReturn:
    raise _Raised(message)


def _by_name(found: Any) -> dict[str, str]:
    try:
        return {str(one["name"]): str(one["template"]) for one in found}
    except (TypeError, KeyError) as error:
        raise BadTokenizer("tokenizer_config.json: chat_template is malformed") from error


def _content(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")
