"""One request and its one response, as a handler sees them.

Renders the response and counts its bytes; the connection knows whose turn it is to write. Calls
after the exchange has ended, by its answer or because the client has gone, do nothing. Invariant:
a response is started at most once, ends at most once, and exactly one framing (length, chunks, or
the connection's end) goes out with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from backends.wire import Buffer
from gateway.lane.pattern import RequestHead
from gateway.lane.response import CHUNKED, CLOSE, KEEP_ALIVE, status_line

if TYPE_CHECKING:
    from gateway.lane.turns import Turns
    from gateway.tenants import Tenant

log = logging.getLogger(__name__)

OPEN, STARTED, ENDED = range(3)

# Up to this size one copy is cheaper than one more element in the socket's write queue.
JOIN_BYTES = 64 * 1024
_LAST_CHUNK = b"0\r\n\r\n"
SWITCHING = 101


class Handler(Protocol):
    """Answers exchanges: now, or later from any callback of the loop; it never raises.

    `streams` False: called when the body is there, in `exchange.body`, decompressed. True: called
    at the head; the body comes through `exchange.on_body`, as the client encoded it.
    """

    @property
    def streams(self) -> bool: ...

    def __call__(self, exchange: Exchange) -> None: ...


class Exchange:
    """`headers` has names in lower case; it is shared between equal requests: never change it.
    `path` and `query` are raw (percent-encoding left as it came).

    The handler may set: `on_gone`, called once if the exchange ends before the response did and
    not by the handler (the client left, its body broke a rule); `on_writable`, called after
    `write` returned False; `on_body` and `on_body_end`, for a streamed body, before it returns;
    `on_end`, called once when the exchange has ended, in whatever way.
    """

    __slots__ = (
        "_body_less",
        "_chunked",
        "_conn",
        "_left",
        "arrived",
        "body",
        "head",
        "headers",
        "held",
        "last",
        "method",
        "on_body",
        "on_body_end",
        "on_end",
        "on_gone",
        "on_writable",
        "path",
        "phase",
        "query",
        "simple",
        "tenant",
    )

    def __init__(
        self, conn: Turns, head: RequestHead, body: Buffer, arrived: float, simple: bool
    ) -> None:
        self._conn: Turns | None = conn
        self.head = head
        self.method, self.path, self.query = head.method, head.path, head.query
        self.headers = head.headers
        # Whose request it is; None where no key was asked for.
        self.tenant: Tenant | None = head.tenant
        self.body = body
        self.arrived = arrived
        # For the connection. simple: nothing else is in flight and nothing special was asked for;
        # last: this answer is the connection's last; held: written before its turn.
        self.simple = simple
        self.phase = OPEN
        self.last = not head.framing.keep_alive
        self.held: list[Buffer] | None = None
        self._chunked = self._body_less = False
        self._left: int | None = None
        self.on_gone: Callable[[], None] | None = None
        self.on_writable: Callable[[], None] | None = None
        self.on_body: Callable[[bytes], object] | None = None
        self.on_body_end: Callable[[], None] | None = None
        self.on_end: Callable[[], None] | None = None

    # ------------------------------------------------------------------------------- the request

    def header(self, name: bytes) -> bytes | None:
        """The first value of a field; `name` in lower case."""
        for known, value in self.headers:
            if known == name:
                return value
        return None

    @property
    def peer(self) -> str:
        """The client's address; empty for a local socket or one that has gone."""
        return self._conn.peer if self._conn is not None else ""

    @property
    def tls(self) -> bool:
        return self._conn is not None and self._conn.tls

    @property
    def is_half_closed(self) -> bool:
        """The client sends no more. It may have gone altogether: only writing would tell."""
        return self._conn is not None and self._conn.is_half_closed

    def pause_body(self) -> None:
        """Read no more of the streamed body."""
        if self._conn is not None:
            self._conn.pause_body(self)

    def resume_body(self) -> None:
        if self._conn is not None:
            self._conn.resume_body(self)

    # ------------------------------------------------------------------------------ the response

    def respond(
        self,
        status: int,
        body: Buffer | Sequence[Buffer] = b"",
        content_type: bytes = b"application/json",
        fields: bytes = b"",
    ) -> None:
        """The whole answer. `fields`: further header lines, each made by `field`."""
        conn = self._conn
        if conn is None:
            return
        if self.simple:
            whole = body if type(body) is bytes else _joined(body)
            prefix = conn.lane.prefixes.sized.get((status, content_type))
            if prefix is not None and whole is not None and len(whole) <= JOIN_BYTES:
                self.simple = False
                self.phase = ENDED
                self._conn = conn.front = self.on_gone = None
                data = b"".join((prefix, b"%d\r\n" % len(whole), fields, b"\r\n", whole))
                try:
                    conn.transport.write(data)
                except RuntimeError:
                    conn.note_broken()
                if self.on_end is not None:
                    self.pass_ended()
                return
        pieces = [body] if isinstance(body, bytes | bytearray | memoryview) else list(body)
        length = sum(map(_size, pieces))
        conn.answering_whole(self)
        head = self._begin(conn, status, content_type, fields, length)
        if self._body_less:
            pieces.clear()
        if length <= JOIN_BYTES:
            conn.send(self, b"".join((head, *pieces)))
        else:
            conn.send(self, head)
            for piece in pieces:
                conn.send(self, piece)
        self._finish(conn)

    def start(
        self,
        status: int,
        content_type: bytes = b"",
        fields: bytes = b"",
        length: int | None = None,
    ) -> None:
        """The head. Without `length` the body goes out in chunks. 101 turns the connection into a
        tunnel: `write` sends and `on_body` (set it before) gets whatever comes, until `end`."""
        conn = self._conn
        if conn is None:
            return
        if status == SWITCHING:
            if self.phase != OPEN:
                raise RuntimeError("this exchange has been answered already")
            conn.begin_tunnel(self, b"%b%b\r\n" % (status_line(status), fields))
        else:
            conn.send(self, self._begin(conn, status, content_type, fields, length))

    def inform(self, status: int, fields: bytes = b"") -> None:
        """An interim answer (1xx), for clients that understand them."""
        assert 100 < status < 200 and status != SWITCHING, "start() answers, inform() announces"
        conn = self._conn
        if conn is not None and self.phase == OPEN and self.head.framing.minor == 1:
            conn.send(self, b"%b%b\r\n" % (status_line(status), fields))

    def write(self, chunk: Buffer) -> bool:
        """More of the body. False: it was taken, but wait for `on_writable` before the next."""
        conn = self._conn
        if conn is None:
            return False
        if self.phase != STARTED:
            raise RuntimeError("write() comes between start() and end()")
        size = _size(chunk)
        if self._body_less or not size:
            return True
        if self._left is not None:
            self._left -= size
            if self._left < 0:
                raise RuntimeError("the body is longer than the length that start() was given")
        if self._chunked:
            chunk = b"".join((b"%x\r\n" % size, chunk, b"\r\n"))
        return conn.send(self, chunk)

    def end(self) -> None:
        """The body is complete. One that is shorter than was promised breaks the connection off."""
        conn = self._conn
        if conn is None:
            return
        if self.phase != STARTED:
            raise RuntimeError("end() comes once, after start()")
        if self._left and not self._body_less:
            conn.abandon(self)
            return
        if self._chunked:
            conn.send(self, _LAST_CHUNK)
        self._finish(conn)

    def abort(self) -> None:
        """Break off: the client sees that the answer is not whole."""
        conn = self._conn
        if conn is not None:
            conn.abandon(self)

    def _begin(
        self, conn: Turns, status: int, content_type: bytes, fields: bytes, length: int | None
    ) -> bytes:
        """Decide framing and persistence, and render the head."""
        if self.phase != OPEN:
            raise RuntimeError("this exchange has been answered already")
        prefix = conn.lane.prefixes.get(status, content_type)
        self.simple, self.phase = False, STARTED
        framing = b""
        minor = self.head.framing.minor
        bare = status in (204, 304)
        self._body_less = bare or self.head.framing.head
        if bare:
            length = None
        elif length is not None:
            framing = b"content-length: %d\r\n" % length
        elif minor == 1:
            framing, self._chunked = CHUNKED, not self._body_less
        elif not self._body_less:
            self.last = True  # HTTP/1.0: the connection's end is the body's
        self._left = length
        self.last = self.last or conn.is_last(self)
        tail = CLOSE if self.last else KEEP_ALIVE if minor == 0 else b""
        return b"%b%b%b%b\r\n" % (prefix, framing, fields, tail)

    def _finish(self, conn: Turns) -> None:
        self.phase, self._conn = ENDED, None
        self.on_gone = self.on_writable = self.on_body = self.on_body_end = None
        if self.on_end is not None:
            self.pass_ended()
        conn.finished(self)

    # --------------------------------------------------------------------- the connection's side

    @property
    def ends_with_connection(self) -> bool:
        """HTTP/1.0 without a length, or a tunnel: only the closed connection tells the end."""
        return self.phase == STARTED and not self._chunked and self._left is None

    # Handlers promise not to raise; one that does costs its own exchange, nothing more.

    def call(self, handler: Handler) -> None:
        try:
            handler(self)
        except Exception:
            self.failed()

    def pass_on(self, piece: bytes) -> None:
        """More of the request's streamed body."""
        if self.on_body is not None:
            try:
                self.on_body(piece)
            except Exception:
                self.failed()

    def pass_end(self) -> None:
        if self.on_body_end is not None:
            try:
                self.on_body_end()
            except Exception:
                self.failed()

    def pass_writable(self) -> None:
        if self.on_writable is not None:
            try:
                self.on_writable()
            except Exception:
                self.failed()

    def pass_gone(self) -> None:
        """Once, and only if the handler asked for it."""
        gone, self.on_gone = self.on_gone, None
        if gone is not None:
            try:
                gone()
            except Exception:
                log.exception("on_gone of %s %s raised", self.method, self.path)

    def failed(self) -> None:
        """The handler has raised, just now."""
        log.exception("the handler of %s %s raised", self.method, self.path)
        if self.phase == OPEN:
            self.respond(500, b'{"error":"internal error"}')
        else:
            self.abort()

    def forget(self) -> None:
        """Let go of the connection and the handler: nothing more passes between them."""
        self.phase, self._conn = ENDED, None
        self.on_gone = self.on_writable = self.on_body = self.on_body_end = None
        if self.on_end is not None:
            self.pass_ended()

    def pass_ended(self) -> None:
        ended, self.on_end = self.on_end, None
        if ended is not None:
            try:
                ended()
            except Exception:
                log.exception("on_end of %s %s raised", self.method, self.path)


def _size(piece: Buffer) -> int:
    return piece.nbytes if isinstance(piece, memoryview) else len(piece)


def _joined(body: Buffer | Sequence[Buffer]) -> bytes | None:
    """As one piece, where that is a small copy."""
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body) if _size(body) <= JOIN_BYTES else None
    return b"".join(body) if sum(map(_size, body)) <= JOIN_BYTES else None
