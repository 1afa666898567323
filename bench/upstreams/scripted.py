"""An OpenAI-like server that answers by a script, fast enough never to be what is measured.

Owns its answers: chat completions whole, or as server-sent events of CHUNKS chunks. One step writes
one chunk to every stream that is open, as an engine does that decodes a batch. It reads no JSON and
checks nothing. `x-upstream` tells which one answered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
from typing import Any, cast

import uvloop

MODEL = "scripted"
CHUNKS = 64
DONE = b"data: [DONE]\n\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_STREAM = re.compile(rb'"stream": ?true')
_TEXT = b"A penstock is the gate that meters water into turbines , and that is the job ."
_WORDS = _TEXT.decode().split()


def chunk(delta: dict[str, str], finish: str | None = None) -> bytes:
    """One event of a stream."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    found = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_764_000_000}
    found |= {"model": MODEL, "choices": [choice]}
    return b"data: " + json.dumps(found).encode() + b"\n\n"


def whole() -> bytes:
    """A completion that is not streamed, of as many tokens."""
    text = " ".join(_WORDS[index % len(_WORDS)] for index in range(CHUNKS))
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 24, "completion_tokens": CHUNKS, "total_tokens": 24 + CHUNKS}
    found: dict[str, Any] = {"id": "chatcmpl-1", "object": "chat.completion", "model": MODEL}
    found |= {"created": 1_764_000_000, "choices": [{**choice, "finish_reason": "stop"}]}
    return json.dumps({**found, "usage": usage}).encode()


class Script:
    """What one server says, rendered once. `pieces`: a stream's writes, in order."""

    def __init__(self, name: str) -> None:
        own = b"x-upstream: %b\r\n" % name.encode()
        body = whole()
        self.completion = self._render(own, body)
        models = {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
        self.models = self._render(own, json.dumps(models).encode())
        self.health = self._render(own, b"{}")
        self.stream_head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n" + own
        self.stream_head += b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
        words = [chunk({"content": f" {_WORDS[i % len(_WORDS)]}"}) for i in range(CHUNKS - 1)]
        events = [chunk({"role": "assistant", "content": ""}), *words]
        events[-1] = chunk({}, "stop") + DONE
        self.pieces = [b"%x\r\n%b\r\n" % (len(event), event) for event in events]
        self.pieces[-1] += b"0\r\n\r\n"

    @staticmethod
    def _render(own: bytes, body: bytes) -> bytes:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n"
        return head % (own, len(body)) + body


class Steps:
    """The open streams; each step writes a chunk to all of them, `every_s` apart."""

    def __init__(self, script: Script, every_s: float) -> None:
        self._script, self._every_s = script, every_s
        self._streams: dict[Connection, int] = {}
        self._loop = asyncio.get_running_loop()
        self._due = 0.0  # of the step that is scheduled

    def add(self, connection: Connection) -> None:
        if not self._streams:
            self._due = self._loop.time() + self._every_s
            self._schedule()
        connection.transport.write(self._script.stream_head)
        self._streams[connection] = 0

    def drop(self, connection: Connection) -> None:
        self._streams.pop(connection, None)

    def _schedule(self) -> None:
        if self._every_s:
            self._loop.call_at(self._due, self._step)
        else:
            self._loop.call_soon(self._step)

    def _step(self) -> None:
        pieces = self._script.pieces
        for connection, at in list(self._streams.items()):
            connection.transport.write(pieces[at])
            if at + 1 < len(pieces):
                self._streams[connection] = at + 1
            else:
                del self._streams[connection]
        if self._streams:
            self._due = max(self._due + self._every_s, self._loop.time())
            self._schedule()


class Connection(asyncio.Protocol):
    """Requests one after another; what has come of the next one waits in `_rest`. A completion
    comes `delay_s` after it was asked for."""

    __slots__ = ("_delay_s", "_rest", "_script", "_steps", "transport")

    def __init__(self, script: Script, steps: Steps, delay_s: float) -> None:
        self._script, self._steps, self._delay_s, self._rest = script, steps, delay_s, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._steps.drop(self)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data if self._rest else data
        while (end := request_end(data)) > 0:
            self._answer(data[:end])
            data = data[end:]
        self._rest = data

    def _answer(self, request: bytes) -> None:
        script = self._script
        target = request[: request.find(b"\r\n")]
        if b"/completions" in target:
            if _STREAM.search(request) is not None:
                self._steps.add(self)
            elif self._delay_s:
                later = asyncio.get_running_loop().call_later
                later(self._delay_s, self.transport.write, script.completion)
            else:
                self.transport.write(script.completion)
        elif b"/v1/models" in target:
            self.transport.write(script.models)
        else:
            self.transport.write(script.health)


def request_end(data: bytes) -> int:
    """Where the first request in `data` ends; 0 when it is not there yet."""
    head = data.find(b"\r\n\r\n") + 4
    if head < 4:
        return 0
    length = _LENGTH.search(data, 0, head)
    if length is not None:
        end = head + int(length[1])
    elif b"chunked" in data[:head].lower():
        end = data.find(b"0\r\n\r\n", head) + 5
        if end < 5:
            return 0
    else:
        end = head
    return end if end <= len(data) else 0


async def serve(name: str, port: int, step_s: float, delay_s: float) -> None:
    loop = asyncio.get_running_loop()
    script = Script(name)
    steps = Steps(script, step_s)
    server = await loop.create_server(
        lambda: Connection(script, steps, delay_s), "127.0.0.1", port, backlog=4096
    )
    print(f"listening on 127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="0", help="what x-upstream says")
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    parser.add_argument("--step-ms", type=float, default=0.0, help="between chunks (default 0)")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="of what is not streamed")
    args = parser.parse_args()
    uvloop.run(serve(args.name, args.port, args.step_ms / 1e3, args.delay_ms / 1e3))


if __name__ == "__main__":
    main()
