"""Stand-ins for what the gateway talks to: a replica that speaks the wire and can misbehave."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from backends import wire
from backends.wire import Fault, Frame, Kind, Signature, Status, TensorSpec

DOUBLE = Signature(
    inputs=(TensorSpec("x", "FP32", (2,)),),
    outputs=(TensorSpec("y", "FP32", (2,)),),
    max_batch_size=8,
)


class FakeReplica:
    """Serves y = 2x on a UNIX socket in the test's own loop.

    `held`: EXECUTE frames are kept until `release`. `answer` makes a frame's reply, None to send
    none; tests replace it.
    """

    def __init__(self, path: Path, *, model: str = "double", version: str = "1-a") -> None:
        self.path, self.model, self.version = path, model, version
        self.state, self.slots, self.channel = "ready", 2, "stable"
        self.versions: tuple[str, ...] = (version,)
        self.executed: list[dict[str, Any]] = []
        self.cancelled: list[int] = []
        self.held: list[tuple[Connection, Frame]] | None = None
        self.answer: Callable[[Frame], list[wire.Buffer] | None] = self.double
        self.connections: set[Connection] = set()
        self.greeted = 0
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        return f"unix:{self.path}"

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: Connection(self), str(self.path))

    async def stop(self) -> None:
        """As a killed process: every connection breaks, the socket refuses."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self.connections):
            connection.transport.abort()
        self.path.unlink(missing_ok=True)
        # Those that were accepted but not met yet, and the closing of all, take a few turns.
        for _ in range(5):
            await asyncio.sleep(0)

    def status(self) -> Status:
        return Status(
            model=self.model,
            kind="tensor",
            state=self.state,
            version=self.version,
            versions=self.versions,
            channel=self.channel,
            slots=self.slots,
            pid=1,
            signature=DOUBLE.to_json(),
        )

    def say(self, **changes: Any) -> None:
        """Change the status and tell every gateway."""
        for name, value in changes.items():
            setattr(self, name, value)
        for connection in self.connections:
            connection.send(wire.encode(Kind.STATUS, 0, self.status().to_json()))

    def release(self) -> None:
        """Answer what is held, and hold no more."""
        held, self.held = self.held or [], None
        for connection, frame in held:
            connection.answer(frame)

    def double(self, frame: Frame) -> list[wire.Buffer]:
        meta = frame.json()
        values = struct.unpack(f"<{len(frame.data) // 4}f", frame.data)
        data = struct.pack(f"<{len(values)}f", *(2 * value for value in values))
        return wire.encode(
            Kind.RESULT,
            frame.id,
            wire.result_meta(
                [("y", "FP32", [sum(meta["rows"]), 2])],
                meta["rows"],
                sizes=[len(data)],
                version=meta.get("version") or self.version,
                queue_us=1,
                compute_us=100,
                batch=sum(meta["rows"]),
            ),
            [data],
        )

    def fault(self, **fault: Any) -> Callable[[Frame], list[wire.Buffer]]:
        """An `answer` that fails every frame as a whole."""
        return lambda frame: wire.encode(Kind.ERROR, frame.id, Fault(**fault).to_json())


async def until(condition: Callable[[], object]) -> None:
    """Both ends share the test's loop; polling is the one form that fits every condition."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


class Connection(asyncio.Protocol):
    def __init__(self, replica: FakeReplica) -> None:
        self.replica, self._decoder = replica, wire.Decoder()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.replica.connections.add(self)
        if self.replica._server is None:  # let in before it stopped, met after
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.replica.connections.discard(self)

    def send(self, buffers: list[wire.Buffer]) -> None:
        self.transport.write(b"".join(buffers))

    def data_received(self, data: bytes) -> None:
        for frame in self._decoder.feed(data):
            if frame.kind == Kind.HELLO:
                self.replica.greeted += 1
                self.send(wire.encode(Kind.STATUS, 0, self.replica.status().to_json()))
            elif frame.kind == Kind.PING:
                self.send(wire.encode(Kind.PONG, frame.id))
            elif frame.kind == Kind.CANCEL:
                self.replica.cancelled.append(frame.id)
            elif frame.kind == Kind.EXECUTE:
                self.replica.executed.append(frame.json())
                if self.replica.held is not None:
                    self.replica.held.append((self, frame))
                else:
                    self.answer(frame)

    def answer(self, frame: Frame) -> None:
        reply = self.replica.answer(frame)
        if reply is not None:
            self.send(reply)
