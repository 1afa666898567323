"""A WebSocket client without a socket: the lane on a fake transport, frames by `websockets`."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import orjson
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from gateway.lane import Lane, Limits
from gateway.ws import SocketLimits, WebSocketSurface
from tests.gateway.lane.fakes import Clock, Wire
from tests.gateway.oip.fakes import FakeDirectory, FakeModel

KEY = b"MDEyMzQ1Njc4OWFiY2RlZg=="
ASK = {"type": "infer", "model_name": "simple"}
X = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2.5, -3]}


def handshake(*lines: str, method: str = "GET", **changes: str | None) -> bytes:
    """A right one unless changed; None takes a field out."""
    fields: dict[str, str | None] = {
        "host": "gateway:8080",
        "connection": "keep-alive, Upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": KEY.decode(),
    } | {name.replace("_", "-"): value for name, value in changes.items()}
    said = [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return "\r\n".join([f"{method} /ws HTTP/1.1", *said, *lines, "", ""]).encode()


def client_frame(opcode: int, data: bytes, *, fin: bool = True) -> bytes:
    return Frame(Opcode(opcode), data, fin).serialize(mask=True)


def text(document: Any) -> bytes:
    return client_frame(1, document if isinstance(document, bytes) else orjson.dumps(document))


def binary(document: Any, *tensors: bytes) -> bytes:
    head = orjson.dumps(document)
    return client_frame(2, b"".join((struct.pack("<I", len(head)), head, *tensors)))


def infer(name: str, **more: Any) -> bytes:
    return text({**ASK, "id": name, "inputs": [X], **more})


def read_frames(raw: bytes, *, masked: bool = False, max_size: int | None = None) -> list[Frame]:
    """By `websockets`' own parser, with its checks."""
    reader = StreamReader()
    reader.feed_data(raw)
    frames = []
    while reader.buffer:
        parser = Frame.parse(reader.read_exact, mask=masked, max_size=max_size)
        try:
            next(parser)
        except StopIteration as done:
            frames.append(done.value)
        else:
            raise EOFError("the last frame is cut off")
    return frames


class Talk:
    """One socket of a surface; `said` has what has come back since it was last asked."""

    def __init__(
        self,
        *models: FakeModel,
        limits: SocketLimits | None = None,
        surface: WebSocketSurface | None = None,
        head: bytes | None = None,
        **options: Any,
    ) -> None:
        self.clock = Clock()
        self.models = models or (FakeModel(),)
        self.surface = surface or WebSocketSurface(
            FakeDirectory(*self.models), limits, clock=self.clock, **options
        )
        self.lane = Lane(self.surface.resolve, None, Limits(), clock=self.clock)
        self.wire = Wire(self.lane).send(handshake() if head is None else head)
        self._read = self.wire.raw.find(b"\r\n\r\n") + 4

    @property
    def model(self) -> FakeModel:
        return self.models[0]

    @property
    def transport(self) -> Any:
        return self.wire.transport

    def send(self, *frames: bytes) -> Talk:
        self.wire.send(*frames)
        return self

    async def frames(self) -> list[Frame]:
        """After what is due in the loop's next turns has been done."""
        for _ in range(4):
            await asyncio.sleep(0)
        raw = self.wire.raw
        new, self._read = raw[self._read :], len(raw)
        return read_frames(new)

    async def said(self) -> list[Any]:
        """Text messages as they are, binary ones as (document, tensors); a close as its code."""
        out: list[Any] = []
        for frame in await self.frames():
            if frame.opcode == Opcode.TEXT:
                out.append(orjson.loads(frame.data))
            elif frame.opcode == Opcode.BINARY:
                end = 4 + struct.unpack_from("<I", frame.data)[0]
                out.append((orjson.loads(frame.data[4:end]), frame.data[end:]))
            elif frame.opcode == Opcode.CLOSE:
                out.append(struct.unpack(">H", frame.data[:2])[0] if frame.data else None)
            else:
                out.append((frame.opcode.name, bytes(frame.data)))
        return out

    async def one(self) -> Any:
        (message,) = await self.said()
        return message
