"""What a replica did, one JSON line an event, for people and machines alike.

Owns the form of the line, never what is worth saying. Safe from every thread: a line is one write.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import IO, Any, Protocol

import orjson


class Events(Protocol):
    def __call__(self, event: str, /, **fields: Any) -> None: ...


class EventLog:
    """Writes `{"time": …, "event": …, "model": …, fields…}` to a stream, without buffering."""

    def __init__(self, stream: IO[bytes], **always: Any) -> None:
        self._stream, self._always = stream, always

    def __call__(self, event: str, /, **fields: Any) -> None:
        now = time.time()
        stamp = (
            time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        )
        line = {"time": stamp, "event": event, **self._always, **fields}
        # Nobody left to read the log is no reason to stop serving.
        with suppress(OSError, ValueError):
            self._stream.write(orjson.dumps(line, default=str, option=orjson.OPT_APPEND_NEWLINE))
            self._stream.flush()
