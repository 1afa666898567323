"""One wire connection to a native replica: many frames in flight, each with one answer.

Owns the socket and the tables of what waits for its terminal answer: frames, and calls, whose
answers come in pieces. It never connects again and never retries: its replica does. Invariant:
each of them hears of its end exactly once, by the terminal answer or by the loss of the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

from backends import wire
from backends.wire import Buffer, Fault, Frame, Kind, Piece, Status

OnAnswer = Callable[[Frame | None], None]


class Caller(Protocol):
    """Who sent a CALL. It hears pieces, the last of which is final, or a failure instead."""

    def piece(self, piece: Piece, data: memoryview) -> None: ...
    def failed(self, fault: Fault | None) -> None:
        """None: the connection is lost."""


_TERMINAL = frozenset({Kind.RESULT, Kind.REPLY, Kind.ERROR})
_NO_CALL = Fault(
    status=502, code="bad_replica", message="the replica answered a call as if it were none"
)


class Link(asyncio.BufferedProtocol):
    """`on_status(link, status)` hears every STATUS, `on_lost(link, why)` once the end."""

    def __init__(
        self,
        on_status: Callable[[Link, Status], None],
        on_lost: Callable[[Link, str], None],
        *,
        gateway: str,
    ) -> None:
        self._on_status, self._on_lost, self._gateway = on_status, on_lost, gateway
        self._decoder = wire.Decoder()
        self._waiting: dict[int, OnAnswer] = {}
        self._calls: dict[int, Caller] = {}
        self._next_id = 1
        self._transport: asyncio.Transport | None = None
        self._why = "closed by the replica"
        self.writable = True
        # When the replica last said anything, in the loop's time.
        self.heard = 0.0

    @property
    def in_flight(self) -> int:
        return len(self._waiting) + len(self._calls)

    def send(
        self, kind: Kind, meta: Any, data: Sequence[Buffer] = (), *, on_answer: OnAnswer
    ) -> int:
        """Send a request frame; its id. Raises WireError where it is too large to be sent."""
        id = self._next_id
        frame = wire.encode(kind, id, meta, data)
        self._next_id = id + 1
        self._waiting[id] = on_answer
        self._write(frame)
        return id

    def call(self, meta: Any, body: Buffer, caller: Caller) -> int:
        """Send a CALL; its id. Raises WireError where it is too large to be sent."""
        id = self._next_id
        frame = wire.encode(Kind.CALL, id, meta, (body,))
        self._next_id = id + 1
        self._calls[id] = caller
        self._write(frame)
        return id

    def cancel(self, id: int) -> None:
        """Its client has gone; the terminal answer still comes."""
        if id in self._waiting or id in self._calls:
            self._write(wire.encode(Kind.CANCEL, id))

    def ping(self) -> None:
        self._write(wire.encode(Kind.PING, 0))

    def abort(self, why: str) -> None:
        self._why = why
        if self._transport is not None:
            self._transport.abort()

    def _write(self, buffers: list[Buffer]) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        # Small parts are cheaper joined than as many entries of one writev.
        if len(buffers) == 1:
            transport.write(buffers[0])
        elif sum(map(len, buffers)) < 65536:
            transport.write(b"".join(buffers))
        else:
            transport.writelines(buffers)

    # ------------------------------------------------------------------------ the socket's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.heard = asyncio.get_running_loop().time()
        self._write(
            wire.encode(Kind.HELLO, 0, {"gateway": self._gateway, "protocol": wire.VERSION})
        )

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._decoder.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        self.heard = asyncio.get_running_loop().time()
        try:
            for frame in self._decoder.buffer_updated(nbytes):
                self._frame(frame)
        except (wire.WireError, KeyError, TypeError, ValueError) as error:
            # Bytes that are no frame, or meta that is not what its kind says.
            self.abort(f"sent what is no answer: {error!r}")

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        waiting, self._waiting = self._waiting, {}
        calls, self._calls = self._calls, {}
        # The owner first: it must not route to this link while its requests are placed again.
        self._on_lost(self, str(exc) if exc is not None else self._why)
        for on_answer in waiting.values():
            on_answer(None)
        for caller in calls.values():
            caller.failed(None)

    def _frame(self, frame: Frame) -> None:
        if frame.kind == Kind.STREAM:
            for piece, data in wire.split_stream(frame):
                table = self._calls
                caller = table.pop(piece.id, None) if piece.final else table.get(piece.id)
                if caller is not None:
                    caller.piece(piece, data)
        elif frame.kind in _TERMINAL:
            on_answer = self._waiting.pop(frame.id, None)
            if on_answer is not None:
                on_answer(frame)
            elif (called := self._calls.pop(frame.id, None)) is not None:
                is_fault = frame.kind == Kind.ERROR
                called.failed(Fault.from_json(frame.json()) if is_fault else _NO_CALL)
            elif frame.id == 0 and frame.kind == Kind.ERROR:
                self.abort(f"the replica refused the connection: {frame.json()}")
        elif frame.kind == Kind.STATUS:
            self._on_status(self, Status.from_json(frame.json()))
        elif frame.kind == Kind.PING:
            self._write(wire.encode(Kind.PONG, frame.id))
