"""From a CALL's body to what the engine is asked: parsed, templated, tokenised.

Owns where that is done: at once for small bodies, on a few threads for large ones, so that no long
prompt holds up the streams of others. Invariant: what waits for those threads is bounded in bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import orjson

from backends.errors import Overloaded
from backends.llm.asked import Asked
from backends.llm.errors import BadRequest, UnsupportedSurface
from backends.llm.surfaces import chat, completions, generate, responses, socket
from backends.llm.surfaces.setting import Setting
from backends.llm.text import TextModel
from backends.wire import Buffer

Parse = Callable[[Any, TextModel, Setting], Asked]
PARSERS: dict[str, Parse] = {
    "chat": chat.parse,
    "completions": completions.parse,
    "responses": responses.parse,
    "generate": generate.parse,
    "generate_stream": generate.parse_stream,
    "ws": socket.parse,
}
# About a millisecond of tokenising.
SMALL = 4096
# Fields whose grammars may take long to compile, though they are short.
_SLOW = (b'"json_schema"', b'"regex"', b'"guided_', b'"tools"')
THREADS = 2
MAX_BODY, MAX_WAITING_BYTES = 64 << 20, 256 << 20


class Preparation:
    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._threads = ThreadPoolExecutor(THREADS, "prepare")
        self._bytes = 0

    def quick(self, body: Buffer) -> bool:
        """It takes no longer than a loop may stand still."""
        if len(body) > SMALL:
            return False
        text = bytes(body)
        return not any(mark in text for mark in _SLOW)

    def now(self, surface: str, body: Buffer, text: TextModel) -> Asked:
        """Raises BackendError."""
        parse = PARSERS.get(surface)
        if parse is None:
            known = ", ".join(PARSERS)
            raise UnsupportedSurface(f"this model answers no {surface!r} calls, only {known}")
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise BadRequest(f"the body is not JSON: {error}") from error
        try:
            return parse(document, text, self._setting)
        except RecursionError as error:
            raise BadRequest("the body is nested too deeply") from error

    def later(self, surface: str, body: Buffer, text: TextModel) -> Future[Asked]:
        """Its callbacks run on another thread. Raises BadRequest or Overloaded."""
        size = len(body)
        if size > MAX_BODY:
            raise BadRequest(f"the body has {size} bytes, {MAX_BODY} at most")
        if self._bytes and self._bytes + size > MAX_WAITING_BYTES:
            raise Overloaded("too many large prompts wait to be tokenised")
        self._bytes += size
        return self._threads.submit(self.now, surface, body, text)

    def done(self, body: Buffer) -> None:
        """The caller has what it asked `later` for."""
        self._bytes -= len(body)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
