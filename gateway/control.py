"""Calls between the supervisor and a worker, and operations on a replica: CONTROL and REPLY frames.

Owns one connection: its calls under way, both directions, and their answers. It knows no operation:
handlers come in by the constructor. Invariant: every call ends in exactly one reply or error, also
when the connection breaks, and no handler outlives its connection.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

from backends.wire import VERSION, Buffer, Decoder, Fault, Frame, Kind, Status, WireError, encode
from gateway.errors import GatewayError

Handlers = Mapping[str, Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]]

log = logging.getLogger("penstock.control")

# Calls of one peer that may run at a time; operators and probes make few.
MAX_RUNNING = 64


class ControlError(Exception):
    """The operation was refused or failed; `status` and `code` as for clients."""

    def __init__(self, message: str, *, status: int = 500, code: str = "control_failed") -> None:
        super().__init__(message)
        self.message, self.status, self.code = message, status, code


class ControlChannel(asyncio.BufferedProtocol):
    """One end of a connection on which both ends may call. `peer` names the other in messages."""

    def __init__(self, handlers: Handlers | None = None, *, peer: str) -> None:
        self.handlers: Handlers = handlers or {}
        self.peer = peer
        self.closed = asyncio.Event()
        self._status: Status | None = None  # the newest, where the other side is a replica
        self._news = asyncio.Event()
        self._decoder = Decoder()
        self._transport: asyncio.Transport | None = None
        self._next_id, self._why = 1, ""
        self._calls: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._running: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(
        cls, sock: socket.socket, handlers: Handlers | None = None, *, peer: str = "the supervisor"
    ) -> ControlChannel:
        """A channel on one end of `socket.socketpair()`, which it owns from now on."""
        loop = asyncio.get_running_loop()
        _, channel = await loop.create_unix_connection(lambda: cls(handlers, peer=peer), sock=sock)
        return channel

    async def call(self, op: str, /, **arguments: Any) -> dict[str, Any]:
        """The other side's answer. Raises ControlError; bound its time with `asyncio.timeout`."""
        if self._transport is None or self._transport.is_closing():
            raise self.gone()
        id, self._next_id = self._next_id, self._next_id + 1
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._calls[id] = answer
        try:
            self._send(Kind.CONTROL, id, {**arguments, "op": op})
            return await answer
        finally:
            del self._calls[id]

    async def status(self, accept: Callable[[Status], bool]) -> Status:
        """The replica's newest STATUS, as soon as `accept` takes it. Raises ControlError."""
        while True:
            if self._status is not None and accept(self._status):
                return self._status
            if self.closed.is_set():
                raise self.gone()
            self._news.clear()
            await self._news.wait()

    def greet(self) -> None:
        """HELLO, with which a replica expects a connection to begin."""
        self._send(Kind.HELLO, 0, {"gateway": "supervisor", "protocol": VERSION})

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    # -------------------------------------------------------------------------------- protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not of asyncio's class.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        for task in self._running:
            task.cancel()
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(self.gone())
        self.closed.set()
        self._news.set()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._decoder.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        try:
            for frame in self._decoder.buffer_updated(nbytes):
                self._receive(frame)
        except WireError as error:
            log.error("%s sent what is no frame: %s", self.peer, error)
            if self._transport is not None:
                self._transport.abort()

    # --------------------------------------------------------------------------------- frames

    def _receive(self, frame: Frame) -> None:
        if frame.kind == Kind.CONTROL:
            self._start(frame)
        elif frame.kind == Kind.PING:
            self._send(Kind.PONG, frame.id)
        elif frame.kind == Kind.ERROR and frame.id == 0:  # of the connection: it closes now
            self._why = f": {Fault.from_json(frame.json()).message}"
        elif frame.kind in (Kind.REPLY, Kind.ERROR):
            answer = self._calls.get(frame.id)
            if answer is None or answer.done():  # its caller has given up
                return
            meta = frame.json()
            if frame.kind == Kind.REPLY:
                answer.set_result(meta)
            else:
                fault = Fault.from_json(meta)
                answer.set_exception(
                    ControlError(fault.message, status=fault.status, code=fault.code)
                )
        elif frame.kind == Kind.STATUS:
            self._status = Status.from_json(frame.json())
            self._news.set()
        # Every other frame answers what we never send.

    def _start(self, frame: Frame) -> None:
        arguments = frame.json()
        if len(self._running) >= MAX_RUNNING:
            busy = ControlError(f"{MAX_RUNNING} operations are running", status=429, code="busy")
            self._refuse(frame.id, busy)
            return
        task = asyncio.get_running_loop().create_task(self._answer(frame.id, arguments))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _answer(self, id: int, arguments: dict[str, Any]) -> None:
        op = arguments.pop("op", None)
        handler = self.handlers.get(str(op))
        try:
            if handler is None:
                known = ", ".join(sorted(self.handlers)) or "none"
                raise ControlError(
                    f"unknown operation {op!r}; known: {known}", status=404, code="unknown_op"
                )
            self._send(Kind.REPLY, id, await handler(arguments))
        except (ControlError, GatewayError) as error:
            self._refuse(id, error)
        except Exception as error:
            log.exception("operation %s failed", op)
            self._refuse(id, ControlError(f"{op} failed: {type(error).__name__}: {error}"))

    def _refuse(self, id: int, error: ControlError | GatewayError) -> None:
        fault = Fault(status=error.status, code=error.code, message=error.message)
        self._send(Kind.ERROR, id, fault.to_json())

    def _send(self, kind: Kind, id: int, meta: dict[str, Any] | None = None) -> None:
        if self._transport is not None and not self._transport.is_closing():
            buffers: list[Buffer] = encode(kind, id, meta)
            self._transport.writelines(buffers)

    def gone(self) -> ControlError:
        """Why nothing can be asked any more."""
        return ControlError(
            f"the connection to {self.peer} is closed{self._why}",
            status=503,
            code="connection_closed",
        )


async def call_replica(address: str, op: str, /, **arguments: Any) -> dict[str, Any]:
    """One operation on the native replica at `unix:/path` or `tcp:host:port`, then goodbye."""
    channel = await open_replica(address)
    try:
        return await channel.call(op, **arguments)
    finally:
        channel.close()


async def replica_status(
    address: str, accept: Callable[[Status], bool] = lambda status: True
) -> Status:
    """What the native replica there says of itself, once `accept` takes it. Raises ControlError
    when it cannot be reached or goes away."""
    channel = await open_replica(address)
    try:
        return await channel.status(accept)
    finally:
        channel.close()


async def open_replica(address: str) -> ControlChannel:
    """A channel to the native replica at `unix:/path` or `tcp:host:port`; close it. Raises
    ControlError when it cannot be reached."""
    loop = asyncio.get_running_loop()

    def make() -> ControlChannel:
        return ControlChannel(peer=f"the replica at {address}")

    try:
        if address.startswith("unix:"):
            _, channel = await loop.create_unix_connection(make, address.removeprefix("unix:"))
        else:
            host, _, port = address.removeprefix("tcp:").rpartition(":")
            _, channel = await loop.create_connection(make, host.strip("[]"), int(port))
    except OSError as error:
        raise ControlError(
            f"cannot reach the replica at {address}: {error.strerror or error}",
            status=503,
            code="unreachable",
        ) from error
    channel.greet()
    return channel
