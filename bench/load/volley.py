"""Completions that are asked for all at once, one on each connection, and timed token by token.

Owns the connections and the reading of their event streams. Times are those at which an event's
last byte arrived; the text is read afterwards, so that the client costs the server little. An
answer that is no 200, ends early or says an error is a VolleyFailed.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httptools


class VolleyFailed(Exception):
    """The message says what was answered."""


@dataclass(slots=True)
class Answer:
    """`times`: of each event with text, on `time.perf_counter`."""

    text: str
    times: list[float]
    tokens: int
    cached: int


async def volley(
    url: str, bodies: Sequence[Mapping[str, Any]], seconds: float
) -> tuple[float, list[Answer]]:
    """When they were sent, and what came. `bodies` ask for streams with usage. Raises
    VolleyFailed, TimeoutError."""
    loop, parts = asyncio.get_running_loop(), urlsplit(url)
    host, port = parts.hostname or "", parts.port or 80
    streams: list[_Stream] = []
    try:
        for _ in bodies:
            _, stream = await loop.create_connection(_Stream, host, port)
            streams.append(stream)
        requests = [_request(parts.netloc, parts.path, body) for body in bodies]
        start = time.perf_counter()
        for stream, request in zip(streams, requests, strict=True):
            stream.send(request)
        async with asyncio.timeout(seconds):
            await asyncio.gather(*(stream.ended for stream in streams))
    except OSError as error:
        if isinstance(error, TimeoutError):
            raise
        raise VolleyFailed(f"cannot connect to {url}: {error}") from error
    finally:
        for stream in streams:
            stream.close()
    return start, [read(stream.status, stream.pieces) for stream in streams]


def read(status: int, pieces: Sequence[tuple[float, bytes]]) -> Answer:
    """An answer from its body's pieces and their times. Raises VolleyFailed."""
    whole = b"".join(piece for _, piece in pieces)
    if status != 200:
        raise VolleyFailed(f"answered {status}: {whole[:200].decode(errors='replace')}")
    answer, done = Answer("", [], 0, 0), False
    for at, data in _events(pieces):
        if done or data == b"[DONE]":
            done = True
            continue
        found = json.loads(data)
        if "error" in found:
            raise VolleyFailed(f"answered {found['error']}")
        if usage := found.get("usage"):
            answer.tokens = usage["completion_tokens"]
            answer.cached = usage["prompt_tokens_details"]["cached_tokens"]
        text = "".join(choice["text"] for choice in found["choices"])
        if text:
            answer.text += text
            answer.times.append(at)
    if not done:
        raise VolleyFailed(f"ended early: {whole[-200:].decode(errors='replace')}")
    return answer


def _events(pieces: Sequence[tuple[float, bytes]]) -> list[tuple[float, bytes]]:
    """The data of each event, with when it was complete; comments are left out."""
    found, rest = [], b""
    for at, piece in pieces:
        *blocks, rest = (rest + piece).split(b"\n\n")
        for block in blocks:
            lines = [line[6:] for line in block.split(b"\n") if line.startswith(b"data: ")]
            if lines:
                found.append((at, b"\n".join(lines)))
    return found


def _request(host: str, path: str, body: Mapping[str, Any]) -> bytes:
    content = json.dumps(body, separators=(",", ":")).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content


class _Stream(asyncio.Protocol):
    """One answer. `pieces`: of its body, each with its time."""

    def __init__(self) -> None:
        self.pieces: list[tuple[float, bytes]] = []
        self.status = 0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self, request: bytes) -> None:
        assert self._transport is not None
        self._transport.write(request)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
        self.ended.cancel()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._end()  # `read` says that it was early

    # ------------------------------------------------------------------- what the parser calls

    def on_body(self, body: bytes) -> None:
        self.pieces.append((time.perf_counter(), body))

    def on_message_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._end()

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
