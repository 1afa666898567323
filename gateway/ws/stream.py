"""One streamed answer on a socket: the seam to whatever generates token by token.

A model that streams gives the surface an `Opener` for its message type. Invariant: a stream gets
exactly one terminal message, from `end` or `fail`, or none and one `on_gone` if it was cancelled or
its socket closed before; what is called after that does nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from backends.wire import Buffer
from gateway.errors import Cancelled, GatewayError
from gateway.ws.messages import Asked, error_frame, object_frame, text_frame

if TYPE_CHECKING:
    from gateway.tenants import Tenant, Visit
    from gateway.ws.socket import Socket

log = logging.getLogger(__name__)


class Stream:
    """`deadline` is absolute in the loop's time. The opener may set `on_gone`: called once when the
    client no longer wants the rest; and `on_writable`: called when `delta` may be called again."""

    __slots__ = ("_size", "_socket", "arrived", "asked", "id", "on_gone", "on_writable")

    def __init__(self, socket: Socket, name: str, asked: Asked, arrived: float, size: int) -> None:
        self._socket: Socket | None = socket
        self._size = size
        self.id, self.asked, self.arrived = name, asked, arrived
        self.on_gone: Callable[[], None] | None = None
        self.on_writable: Callable[[], None] | None = None

    @property
    def deadline(self) -> float:
        return self.arrived + self.asked.deadline_s

    @property
    def timing(self) -> bool:
        """Whether results say how long they took."""
        return self._socket is not None and self._socket.timing

    @property
    def tenant(self) -> Tenant | None:
        """Whose request it is; None where no key was asked for."""
        return self._socket.tenant if self._socket is not None else None

    def enter(self, model: str, tokens: float = 0.0) -> Visit | None:
        """Have the request admitted, once, before anything is begun for it; set `tokens` of what
        comes back when they are known. None where there are no tenants. Raises GatewayError."""
        return self._socket.enter(self.id, model, tokens) if self._socket is not None else None

    def delta(self, fields: Mapping[str, Any]) -> bool:
        """A piece of the answer. False: it was taken, but the client is slow; wait for
        `on_writable`. One that never waits loses the socket when too much has gathered."""
        socket = self._socket
        if socket is None:
            return False
        return socket.write(text_frame("delta", self.id, fields))

    def end(self, fields: Mapping[str, Any], rest: Buffer = b"{}") -> None:
        """The answer is whole; `fields` go into its result message, and those of `rest`, which is
        a JSON object already."""
        self._finish(object_frame("result", self.id, fields, rest))

    def pass_on(self, delta: Buffer) -> bool:
        """As `delta`, for fields that are a JSON object already."""
        socket = self._socket
        if socket is None:
            return False
        return socket.write(object_frame("delta", self.id, {}, delta))

    def fail(self, error: GatewayError) -> None:
        self._finish(error_frame(self.id, error))

    def _finish(self, frame: bytes) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            self.on_gone = self.on_writable = None
            socket.ended(self.id, self._size)
            socket.write(frame)

    # ------------------------------------------------------------------------- the socket's side

    def gone(self) -> None:
        """Cancelled by the client, or its socket has closed."""
        socket, gone = self._socket, self.on_gone
        self.fail(Cancelled("the client no longer wants it"))
        if socket is not None and gone is not None:
            try:
                gone()
            except Exception:
                log.exception("on_gone of the stream %r raised", self.id)

    def pass_writable(self) -> None:
        if self.on_writable is not None:
            try:
                self.on_writable()
            except Exception:
                log.exception("on_writable of the stream %r raised", self.id)
                self.fail(GatewayError("the gateway failed on this stream"))


# Begins the answer to a message: reads the document and keeps the stream, or raises GatewayError.
Opener = Callable[[dict[str, Any], Stream], None]
