"""A connection whose answers are streams of server-sent events, each piece of them timed.

Owns the counting of events. Invariant: an answer that is a stream of OpenAI's and ends without
`data: [DONE]` counts as broken, as does one with an error event.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

from bench.load.connection import Connection, Owner

DONE = b"data: [DONE]"
# Where a server reports an error within a stream: OpenAI's form, EventSource's, ours.
ERRORS = (b'data: {"error"', b"event: error")


class StreamOwner(Owner, Protocol):
    def events(self, connection: Any, count: int, waited: float, first: bool) -> None:
        """`count` events came together, `waited` seconds after those before, or after `since`."""


class EventConnection(Connection):
    __slots__ = ("_last", "_newline", "_openai", "_seen", "_stream", "_wrong")

    def __init__(self, owner: StreamOwner, *, openai: bool) -> None:
        super().__init__(owner)
        self._stream: StreamOwner = owner
        self._openai = openai
        self._begin()

    def _begin(self) -> None:
        self._last = 0.0
        self._newline = False  # the last piece ended in the middle of an event's end
        self._seen = b""  # of the stream's end
        self._wrong = ""

    def send(self, request: bytes, since: float) -> None:
        self._begin()
        super().send(request, since)

    def on_body(self, piece: bytes) -> None:
        if not self.busy:
            return
        text = b"\n" + piece if self._newline else piece
        count = text.count(b"\n\n")
        self._newline = text.endswith(b"\n") and not text.endswith(b"\n\n")
        self._seen = (self._seen + piece)[-64:]
        if any(mark in piece for mark in ERRORS):
            self._wrong = "an error event"
        if count:
            now, first = time.monotonic(), not self._last
            self._stream.events(self, count, now - (self._last or self.since), first)
            self._last = now

    def on_message_complete(self) -> None:
        good = self.busy and 200 <= self._parser.get_status_code() < 300
        if good and self._openai and self._last and DONE not in self._seen:
            self._wrong = self._wrong or "a stream without [DONE]"
        if good and self._wrong:
            self.abandon(self._wrong)
            return
        super().on_message_complete()
