"""Calls of tools as models write them, found in the text as it comes.

Owns the formats that are known: Hermes and Qwen (`<tool_call>{"name", "arguments"}</tool_call>`)
and Llama 3.1 (the whole answer is `{"name", "parameters"}`). Pure. Invariant: text is given out as
content only when it can be no call any more; what looks like a call but is none stays content.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import orjson

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class ToolCall(NamedTuple):
    name: str
    arguments: str  # JSON, as OpenAI's API has it


@dataclass(frozen=True, slots=True)
class ToolFormat:
    name: str

    @property
    def marks(self) -> tuple[str, str] | tuple[()]:
        """By which calls are found in the text."""
        return (OPEN, CLOSE) if self.name == "hermes" else ()

    @property
    def key(self) -> str:
        """Under which a call has its arguments."""
        return "arguments" if self.name == "hermes" else "parameters"

    def parser(self) -> ToolParser:
        return HermesParser() if self.name == "hermes" else LlamaParser()


class ToolParser:
    """One choice: `feed` gives content and calls in the order in which they were said."""

    def feed(self, text: str, *, final: bool = False) -> list[str | ToolCall]:
        raise NotImplementedError


def find_format(template: str) -> ToolFormat | None:
    """By the marks that a template writes; None where it takes no tools or none that we know."""
    if "tools" not in template:
        return None
    if OPEN in template:
        # Qwen3-Coder writes its calls as XML inside the same tag.
        return None if "<function=" in template else ToolFormat("hermes")
    if "<|python_tag|>" in template and '"parameters"' in template:
        return ToolFormat("llama")
    return None


class HermesParser(ToolParser):
    def __init__(self) -> None:
        self._held = ""
        self._inside = self._called = False

    def feed(self, text: str, *, final: bool = False) -> list[str | ToolCall]:
        self._held += text
        said: list[str | ToolCall] = []
        while True:
            mark = CLOSE if self._inside else OPEN
            before, found, after = self._held.partition(mark)
            if not found:
                break
            self._held = after
            if self._inside:
                said.append(_call(before, "arguments") or f"{OPEN}{before}{CLOSE}")
                self._called = True
            elif before.strip():
                said.append(before.rstrip("\n"))
            self._inside = not self._inside
        return said + self._rest(final)

    def _rest(self, final: bool) -> list[str | ToolCall]:
        if self._inside:
            if not final:
                return []
            # Cut off before its end: a whole call all the same, or what was said.
            text, self._held = self._held, ""
            return [_call(text, "arguments") or OPEN + text]
        keep = 0 if final else _unsure(self._held)
        text, self._held = (
            self._held[: len(self._held) - keep],
            self._held[len(self._held) - keep :],
        )
        blank = self._called and not text.strip()
        return [text] if text and not blank else []


class LlamaParser(ToolParser):
    def __init__(self) -> None:
        self._held = ""
        self._plain = False

    def feed(self, text: str, *, final: bool = False) -> list[str | ToolCall]:
        if self._plain:
            return [text] if text else []
        self._held += text
        start = self._held.lstrip()
        if start and not start.startswith("{"):
            self._plain = True
        if not final and not self._plain:
            return []
        text, self._held = self._held, ""
        call = None if self._plain else _call(text, "parameters")
        return [call] if call is not None else [text] if text else []


def _call(text: str, key: str) -> ToolCall | None:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get(key, value.get("arguments", {}))
    if isinstance(arguments, str):
        return ToolCall(value["name"], arguments)
    return ToolCall(value["name"], orjson.dumps(arguments).decode())


def _unsure(text: str) -> int:
    """The length of the longest end of `text` with which OPEN begins; newlines before it too."""
    for size in range(min(len(text), len(OPEN) - 1), 0, -1):
        if OPEN.startswith(text[-size:]):
            return size + _newlines(text[:-size])
    return _newlines(text)


def _newlines(text: str) -> int:
    return len(text) - len(text.rstrip("\n"))
