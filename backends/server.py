"""The sockets of a replica: connections of gateways, their frames in, answers and STATUS out.

Owns the listening socket and every connection, on the event loop's thread. It executes nothing: an
engine does. Invariants: a frame that no engine answers gets an ERROR; a connection that reads
slowly is read slowly, and neither it nor a dead one holds up another.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, cast

from backends import wire
from backends.errors import BackendError, BadFrame, CannotListen
from backends.events import Events
from backends.wire import Buffer, Decoder, Fault, Frame, Kind, Status, WireError, encode

# Several small buffers are cheaper joined than as entries of one writev.
JOIN_BELOW = 64 * 1024


class Engine(Protocol):
    """What a replica serves. Called on the event loop's thread; raises BackendError to answer a
    frame with that fault. Requests that it takes it answers later, through the connection."""

    def status(self) -> Status: ...
    def execute(self, connection: Connection, frame: Frame) -> None: ...
    def call(self, connection: Connection, frame: Frame) -> None: ...
    def cancel(self, connection: Connection, id: int) -> None: ...
    def control(
        self, op: str, arguments: dict[str, Any]
    ) -> dict[str, Any] | asyncio.Future[dict[str, Any]]: ...
    def lost(self, connection: Connection) -> None: ...


class Connection(asyncio.BufferedProtocol):
    """One gateway."""

    def __init__(self, server: Server) -> None:
        self._server, self._engine = server, server.engine
        self._decoder = Decoder()
        self._transport: asyncio.Transport | None = None
        self.paused = self._owes_status = False
        self._once_writable: list[Callable[[], None]] = []
        self.greeted = False
        self.gateway = ""

    # ------------------------------------------------------------------------------- for engines

    def send(self, buffers: Sequence[Buffer]) -> None:
        """A whole frame; dropped when the gateway has gone."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if len(buffers) == 1:
            transport.write(buffers[0])
        elif sum(map(len, buffers)) < JOIN_BELOW:
            transport.write(b"".join(buffers))
        else:
            transport.writelines(buffers)

    def fault(self, id: int, fault: Fault) -> None:
        self.send(encode(Kind.ERROR, id, fault.to_json()))

    def push(self, status: list[Buffer]) -> None:
        """STATUS; a gateway that does not read gets only the newest, once it reads again."""
        if self.paused:
            self._owes_status = True
        elif self.greeted:
            self.send(status)

    def once_writable(self, callback: Callable[[], None]) -> None:
        """Call it when the gateway takes answers again; while `paused`, it takes none."""
        self._once_writable.append(callback)

    def close(self) -> None:
        """After what was sent has gone out."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    @property
    def drained(self) -> bool:
        """Everything sent has left this process."""
        transport = self._transport
        return transport is None or transport.is_closing() or not transport.get_write_buffer_size()

    # ------------------------------------------------------------------------ the socket's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            # A gateway's machine that vanished says nothing; the kernel finds out.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._server.connections.discard(self)
        self._engine.lost(self)
        if self.greeted:
            self._server.events("gateway.lost", gateway=self.gateway, reason=str(exc or "closed"))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._decoder.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        try:
            for frame in self._decoder.buffer_updated(nbytes):
                self._frame(frame)
        except WireError as error:
            # What follows on this connection cannot be understood either.
            self._server.events("gateway.refused", gateway=self.gateway, reason=str(error))
            self.fault(0, Fault(status=400, code="bad_wire", message=str(error)))
            self.close()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        """It takes no answers: take no work from it, so that what it is owed stays bounded."""
        self.paused = True
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self.paused = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
        if self._owes_status:
            self._owes_status = False
            self._server.push_status()
        callbacks, self._once_writable = self._once_writable, []
        for callback in callbacks:
            callback()

    def _frame(self, frame: Frame) -> None:
        kind = frame.kind
        if not self.greeted and kind != Kind.PING:
            self._greet(frame)
            return
        try:
            if kind == Kind.EXECUTE:
                self._engine.execute(self, frame)
            elif kind == Kind.CALL:
                self._engine.call(self, frame)
            elif kind == Kind.CANCEL:
                self._engine.cancel(self, frame.id)
            elif kind == Kind.PING:
                self.send(encode(Kind.PONG, frame.id))
            elif kind == Kind.CONTROL:
                self._control(frame)
            elif kind != Kind.PONG:
                raise WireError(f"a gateway does not send {Kind(kind).name}")
        except BackendError as error:
            self.fault(frame.id, error.fault())
        except WireError:
            raise
        except Exception as error:
            # A defect of ours: this frame fails, the connection and the others do not.
            self._server.events("frame.crashed", kind=Kind(kind).name, error=repr(error))
            self.fault(frame.id, BackendError(f"internal error: {error!r}").fault())

    def _greet(self, frame: Frame) -> None:
        if frame.kind != Kind.HELLO:
            raise WireError(f"expected HELLO first, got {Kind(frame.kind).name}")
        hello = frame.json()
        if not isinstance(hello, dict) or hello.get("protocol") != wire.VERSION:
            raise WireError(f"HELLO must say protocol {wire.VERSION}, got {hello!r}")
        self.greeted, self.gateway = True, str(hello.get("gateway", ""))
        self._server.events("gateway.connected", gateway=self.gateway)
        self.send(encode(Kind.STATUS, 0, self._engine.status().to_json()))

    def _control(self, frame: Frame) -> None:
        meta = frame.json()
        if not isinstance(meta, dict) or not isinstance(meta.get("op"), str):
            raise BadFrame('CONTROL needs an "op"', param="op")
        id, reply = frame.id, self._engine.control(meta.pop("op"), meta)
        if isinstance(reply, asyncio.Future):
            reply.add_done_callback(lambda done: self._done(id, done))
        else:
            self.send(encode(Kind.REPLY, id, reply))

    def _done(self, id: int, done: asyncio.Future[dict[str, Any]]) -> None:
        """An operation that took its time has ended."""
        if done.cancelled() or (error := done.exception()) is None:
            reply = {} if done.cancelled() else done.result()
            self.send(encode(Kind.REPLY, id, reply))
        elif isinstance(error, BackendError):
            self.fault(id, error.fault())
        else:
            self._server.events("control.crashed", error=repr(error))
            self.fault(id, BackendError(f"internal error: {error!r}").fault())


class Server:
    """Listens on "unix:/path" or "tcp:host:port" (port 0: the system picks one)."""

    def __init__(self, engine: Engine, events: Events) -> None:
        self.engine, self.events = engine, events
        self.connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        # The socket's file, and which one of that name it is.
        self._file: tuple[Path, int] | None = None
        self._pushing = False

    async def listen(self, address: str) -> str:
        """The address it really has. Raises CannotListen."""
        loop = asyncio.get_running_loop()
        scheme, _, rest = address.partition(":")
        try:
            if scheme == "unix" and rest:
                sock = _bind_unix(Path(rest))
                self._file = Path(rest), os.stat(rest).st_ino
                self._server = await loop.create_unix_server(lambda: Connection(self), sock=sock)
                return address
            host, _, port = rest.rpartition(":")
            if scheme != "tcp" or not host or not port.isdecimal():
                raise CannotListen(f'expected "unix:/path" or "tcp:host:port", got "{address}"')
            self._server = await loop.create_server(
                lambda: Connection(self), host.strip("[]"), int(port)
            )
            return f"tcp:{host}:{self._server.sockets[0].getsockname()[1]}"
        except (OSError, OverflowError) as error:
            raise CannotListen(f"cannot listen on {address}: {error}") from error

    def push_status(self) -> None:
        """STATUS to every gateway; changes of one turn of the loop go out as one."""
        if not self._pushing:
            self._pushing = True
            asyncio.get_running_loop().call_soon(self._push)

    def _push(self) -> None:
        self._pushing = False
        status = encode(Kind.STATUS, 0, self.engine.status().to_json())
        for connection in self.connections:
            connection.push(status)

    @property
    def drained(self) -> bool:
        return all(connection.drained for connection in self.connections)

    async def close(self) -> None:
        """Listen no more; close connections after what they are owed; remove the socket's file."""
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.close()
        if self._file is not None:
            path, inode = self._file
            with suppress(OSError):
                # A successor may have taken the name already.
                if os.stat(path).st_ino == inode:
                    path.unlink()
        # One turn of the loop for what is closing to go out.
        await asyncio.sleep(0)
        for connection in list(self.connections):
            connection.abort()


def _bind_unix(path: Path) -> socket.socket:
    """A bound socket. The file of a dead process is removed, one that is alive is left alone."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise CannotListen(f"cannot listen on unix:{path}: it is a file, not a socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
            else:
                raise CannotListen(f"cannot listen on unix:{path}: another process does")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
    except BaseException:
        sock.close()
        raise
    return sock
