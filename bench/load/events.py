"""A connection whose answers are streams of server-sent events, each piece of them timed.

Owns the counting of events, whichever way a server ends its lines, and of the tokens that OpenAI's
`usage` tells. Invariant: an answer that is a stream of OpenAI's and ends without `data: [DONE]`
counts as broken, as does one with an error event, and in `sse` one without any event.
"""

from __future__ import annotations

import re
import time
from typing import Any, Protocol

from bench.load.connection import Connection, Owner

DONE = re.compile(rb"data: ?\[DONE\]")
# Where a server reports an error within a stream: OpenAI's form, EventSource's, ours.
ERRORS = re.compile(rb'data: ?\{"error"|event: ?error')
TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')
# Of a stream's end: the event with the usage, and the last one.
END_BYTES = 2048


class StreamOwner(Owner, Protocol):
    def events(self, connection: Any, count: int, waited: float, first: bool) -> None:
        """`count` events came together, `waited` seconds after those before, or after `since`."""

    def counted_tokens(self, connection: Any, count: int) -> None:
        """The answer says that it has so many."""


class EventConnection(Connection):
    __slots__ = ("_end_seen", "_last", "_openai", "_rest", "_stream", "_wrong")

    def __init__(self, owner: StreamOwner, *, openai: bool) -> None:
        super().__init__(owner)
        self._stream: StreamOwner = owner
        self._openai = openai
        self._begin()

    def _begin(self) -> None:
        self._last = 0.0
        self._rest = b""  # a line's end that the next piece may make an event's end
        self._end_seen = b""
        self._wrong = ""

    def send(self, request: bytes, since: float) -> None:
        self._begin()
        super().send(request, since)

    def on_body(self, piece: bytes) -> None:
        if not self.busy or not 200 <= self._parser.get_status_code() < 300:
            return
        self._end_seen = (self._end_seen + piece)[-END_BYTES:]
        if ERRORS.search(piece) is not None:
            self._wrong = "an error event"
        if count := self._ends(piece):
            now, first = time.monotonic(), not self._last
            self._stream.events(self, count, now - (self._last or self.since), first)
            self._last = now

    def _ends(self, piece: bytes) -> int:
        """Events that end in it: lines end in LF or CRLF, an event in an empty one."""
        text = self._rest + piece
        cut = b"\r" if text.endswith(b"\r") else b""
        text = text.removesuffix(b"\r").replace(b"\r\n", b"\n")
        open_line = b"\n" if text.endswith(b"\n") and not text.endswith(b"\n\n") else b""
        self._rest = open_line + cut
        return text.count(b"\n\n")

    def on_message_complete(self) -> None:
        good = self.busy and 200 <= self._parser.get_status_code() < 300
        if good and self._openai:
            if self._last and DONE.search(self._end_seen) is None:
                self._wrong = self._wrong or "a stream without [DONE]"
            if told := TOKENS.findall(self._end_seen):
                self._stream.counted_tokens(self, int(told[-1]))
        elif good and not self._last:
            self._wrong = self._wrong or "an answer without events"
        if good and self._wrong:
            self.abandon(self._wrong)
            return
        super().on_message_complete()
