"""A native language-model replica for tests: the real wire, scripted answers, and every misdeed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import orjson

from backends import wire
from backends.wire import Call, Fault, Kind, Piece, Status

Script = Callable[["FakeCall"], Awaitable[None]]
EVENTS = "text/event-stream"


class FakeCall:
    """One CALL as the replica sees it, and the means to answer it."""

    def __init__(self, connection: Connection, id: int, meta: Call, body: bytes) -> None:
        self.connection, self.id, self.meta, self.body = connection, id, meta, body
        self.replica = connection.replica
        self.cancelled = asyncio.Event()
        self._said = False

    @property
    def document(self) -> dict[str, Any]:
        return orjson.loads(self.body)

    def piece(
        self,
        data: bytes = b"",
        *,
        final: bool = False,
        type: str = EVENTS,
        usage: tuple[int, int, int] | None = None,
        **info: Any,
    ) -> None:
        """`usage`: prompt, completion, cached."""
        if not self._said:
            self._said = True
            info |= {"type": type, "version": self.meta.version or self.replica.version}
        if final:
            names = ("prompt_tokens", "completion_tokens", "cached_tokens")
            info["usage"] = dict(zip(names, usage or (8, 4, 0), strict=True))
        frame = wire.stream_frame([(Piece(self.id, len(data), final, info or None), data)])
        self.connection.send(frame)

    def delta(self, text: str, **more: Any) -> None:
        """One chat completion chunk as an event."""
        choice = {"index": 0, "delta": {"role": "assistant", "content": text}, **more}
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "choices": [choice]}
        self.piece(b"data: " + orjson.dumps(chunk | {"model": "m"}) + b"\n\n")

    def done(self, usage: tuple[int, int, int] = (8, 4, 0)) -> None:
        self.piece(b"data: [DONE]\n\n", final=True, usage=usage)

    def whole(self, document: Any, usage: tuple[int, int, int] = (8, 4, 0)) -> None:
        self.piece(orjson.dumps(document), final=True, type="application/json", usage=usage)

    def fault(self, **fault: Any) -> None:
        self.connection.send(wire.encode(Kind.ERROR, self.id, Fault(**fault).to_json()))


def completion(text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 8, "completion_tokens": 4, "total_tokens": 12}
    return {
        "id": "c", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [choice], "usage": usage,
    }  # fmt: skip


WORDS = ("The capital", " of France", " is Paris", ".")


async def talk(call: FakeCall) -> None:
    """Says WORDS, in the form that was asked for."""
    if call.document.get("stream"):
        for word in WORDS:
            call.delta(word)
            await asyncio.sleep(0)
        call.done()
    else:
        call.whole(completion("".join(WORDS)))


class FakeLLM:
    """`script` answers each call in a task of its own. `stop` is a killed process's end."""

    def __init__(self, path: Path, script: Script = talk, *, model: str = "m") -> None:
        self.path, self.script, self.model = path, script, model
        self.kind, self.state, self.version, self.slots = "llm", "ready", "1-a", 8
        self.versions: tuple[str, ...] = ("1-a",)
        self.surfaces: tuple[str, ...] = ()
        self.channel = "stable"
        self.signature: dict[str, Any] | None = None
        self.load: dict[str, float] | None = None
        self.calls: list[FakeCall] = []
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        return f"unix:{self.path}"

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: Connection(self), str(self.path))

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self.connections):
            connection.transport.abort()
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.path.unlink(missing_ok=True)
        for _ in range(5):  # connections that were let in and not met yet
            await asyncio.sleep(0)

    def die(self) -> None:
        """Every link breaks, at once; new ones are met."""
        for connection in list(self.connections):
            connection.transport.abort()

    def status(self) -> Status:
        return Status(
            model=self.model,
            kind=self.kind,
            state=self.state,
            version=self.version,
            versions=self.versions,
            channel=self.channel,
            slots=self.slots,
            pid=1,
            load=self.load,
            surfaces=self.surfaces,
            signature=self.signature,
        )

    def say(self, **changes: Any) -> None:
        """Change the status and tell every gateway."""
        for name, value in changes.items():
            setattr(self, name, value)
        for connection in self.connections:
            connection.send(wire.encode(Kind.STATUS, 0, self.status().to_json()))


class Connection(asyncio.Protocol):
    def __init__(self, replica: FakeLLM) -> None:
        self.replica, self._decoder = replica, wire.Decoder()
        self._live: dict[int, FakeCall] = {}
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.replica.connections.add(self)
        if self.replica._server is None:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.replica.connections.discard(self)
        for call in self._live.values():
            call.cancelled.set()

    def send(self, buffers: list[wire.Buffer]) -> None:
        self.transport.write(b"".join(buffers))

    def data_received(self, data: bytes) -> None:
        for frame in self._decoder.feed(data):
            if frame.kind == Kind.HELLO:
                self.send(wire.encode(Kind.STATUS, 0, self.replica.status().to_json()))
            elif frame.kind == Kind.PING:
                self.send(wire.encode(Kind.PONG, frame.id))
            elif frame.kind == Kind.CANCEL:
                self._live[frame.id].cancelled.set()
            elif frame.kind == Kind.CALL:
                call = FakeCall(self, frame.id, Call.from_json(frame.json()), bytes(frame.data))
                self._live[frame.id] = call
                self.replica.calls.append(call)
                task = asyncio.get_running_loop().create_task(self.replica.script(call))
                self.replica.tasks.add(task)
                task.add_done_callback(self.replica.tasks.discard)
