"""One HTTP/1.1 connection to an upstream server, one exchange on it at a time.

Owns the socket, the response parser and the flow control between them and the exchange's sink. It
never picks an upstream, retries or times out: the relay does. Invariant: every exchange that was
begun ends in exactly one call of `sink.upstream_done` or `sink.upstream_failed`, and after that
the sink hears nothing more of it.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from typing import Protocol, cast

import httptools

from gateway.relay.memo import HeadMemo, Known
from gateway.relay.outbox import Outbox

# A response head beyond this is not one that a client would accept either.
MAX_HEAD = 64 * 1024
# Interim answers (103 and the like) of one exchange; a client that reads slowly has them all kept.
MAX_INTERIM = 64
# Up to this size one copy is cheaper than one more write.
JOIN_BYTES = 64 * 1024

Headers = list[tuple[bytes, bytes]]


class Broke(enum.Enum):
    """How an exchange failed: what may be tried again depends on it."""

    CLOSED_IDLE = "closed before the request reached it"
    CLOSED = "closed before it answered"
    CUT = "closed in the middle of its answer"
    NONSENSE = "did not answer in HTTP"


class Sink(Protocol):
    """Who hears of an exchange's response; all calls come from the event loop."""

    def upstream_head(self, status: int, reason: bytes, headers: Headers) -> None: ...
    def upstream_interim(self, status: int, headers: Headers) -> None: ...
    def upstream_body(self, chunk: bytes) -> None: ...
    def upstream_read(self) -> None:
        """All that one read of the socket brought has been told, and the answer goes on."""

    def upstream_upgraded(self, early: bytes) -> None: ...
    def upstream_writable(self) -> None: ...
    def upstream_done(self) -> None: ...
    def upstream_whole(self, known: Known, body: bytes) -> None:
        """All of an answer at once, in place of the calls for its parts."""

    def upstream_failed(self, how: Broke, detail: str) -> None: ...


class UpstreamConnection(asyncio.Protocol):
    """`on_idle(connection)` is called when it may carry the next exchange, `on_lost(connection)`
    once when it is gone."""

    __slots__ = (
        "_body_open",
        "_guess",
        "_head_bytes",
        "_headers",
        "_interim",
        "_interims",
        "_keep_alive",
        "_memo",
        "_no_body",
        "_on_idle",
        "_on_lost",
        "_outbox",
        "_parser",
        "_reason",
        "_request_open",
        "_sink",
        "_transport",
        "_tunnel",
        "_unsent",
        "_untouched",
        "idle_since",
        "lost",
        "served",
        "writable",
    )

    def __init__(
        self,
        on_idle: Callable[[UpstreamConnection], None],
        on_lost: Callable[[UpstreamConnection], None],
        memo: HeadMemo,
        outbox: Outbox,
    ) -> None:
        self._on_idle, self._on_lost, self._memo = on_idle, on_lost, memo
        self._outbox = outbox
        self._unsent = b""  # a request that is in the outbox
        self._guess = 0  # the length of the last head
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._sink: Sink | None = None
        self._headers: Headers = []
        self._reason = b""
        self._head_bytes = 0
        self._no_body = False  # the answer to a HEAD carries none, whatever its headers say
        self._body_open = False  # a final head has been seen, its end has not
        self._request_open = False  # the request's own body is still being written
        self._interim = False
        self._interims = 0  # of this exchange
        self._keep_alive = False
        self._tunnel = False
        self._untouched = True  # nothing of this exchange's answer has arrived
        self.lost = False
        self.writable = True
        self.served = 0
        self.idle_since = 0.0  # the pool's

    # ------------------------------------------------------------------------- the exchange's side

    def begin(self, sink: Sink, head: bytes, body: bytes, *, is_head: bool, complete: bool) -> None:
        """Send a request's head and what is there of its body; `complete` if that is all."""
        assert self._sink is None and not self.lost
        assert self._transport is not None
        self._sink, self._no_body = sink, is_head
        self._untouched, self._request_open = True, not complete
        if len(body) >= JOIN_BYTES:
            self._transport.write(head)
            self._transport.write(body)
        elif complete:
            self._unsent = head + body
            self._outbox.put(self)
        else:
            self._transport.write(head + body)

    def flush(self) -> None:
        """The outbox: this turn is over."""
        unsent, self._unsent = self._unsent, b""
        if not unsent or self._transport is None or self.lost:
            return
        try:
            self._transport.write(unsent)
        except RuntimeError:
            return  # an error has closed the transport: connection_lost() comes

    def send(self, chunk: bytes) -> bool:
        """More of the request's body; False when the caller should wait for `upstream_writable`."""
        if self._transport is not None and not self.lost:
            self._transport.write(chunk)
        return self.writable

    def end_request(self) -> None:
        """The request's body is complete."""
        self._request_open = False

    def pause(self) -> None:
        """The client reads slowly: read no more from the upstream until `resume`."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def discard(self) -> None:
        """Read the rest of an answer that nobody wants, to keep the connection. For short ones."""
        if self._sink is not None:
            self._sink = _NOBODY
            self.resume()

    def half_close(self) -> None:
        """Nothing more comes through the tunnel from our side."""
        if self._transport is not None and not self.lost and self._transport.can_write_eof():
            self._transport.write_eof()

    def leave(self, within_s: float) -> None:
        """Nobody is interested in this connection any more; what was sent still arrives."""
        self._sink = _NOBODY
        self.half_close()
        asyncio.get_running_loop().call_later(within_s, self.abort)

    def abort(self) -> None:
        """Give the exchange up: the upstream learns of it by the closed connection, at once."""
        self._sink, self._unsent = None, b""
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        self.abort()

    def cut(self) -> None:
        """Close it at once; who has an exchange on it hears that it failed."""
        if self._transport is not None:
            self._transport.abort()

    # --------------------------------------------------------------------------- the socket's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        if self._sink is not None:
            self._sink.upstream_writable()

    def data_received(self, data: bytes) -> None:
        sink = self._sink
        if self._tunnel:
            if sink is not None:
                sink.upstream_body(data)
                sink.upstream_read()
            return
        if sink is None:
            # Bytes that nobody asked for: whatever they are, the next answer cannot be trusted.
            self.abort()
            return
        end = 0  # of the head, where this may be a whole plain answer
        if self._untouched:
            self._untouched = False
            if not (self._no_body or self._request_open):
                # An upstream repeats its heads, so their length is guessed before it is looked for.
                table, end = self._memo.table, self._guess
                known = table.get(data[:end])
                if known is None:
                    self._guess = end = data.find(b"\r\n\r\n") + 4
                    known = table.get(data[:end])
                if known is not None and len(data) == end + known.length:
                    self._sink = None
                    self.served += 1
                    sink.upstream_whole(known, data[end:])
                    if not self.lost:
                        self._on_idle(self)
                    return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._sink is None:
                # An offer to upgrade that came with an ordinary, complete answer.
                return
            self._tunnel = True
            self._sink.upstream_upgraded(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._fail(Broke.NONSENSE, f"did not answer in HTTP: {error}")
        else:
            if sink is not self._sink:  # the answer is complete, or given up
                if end > 3 and self._sink is None and self._keep_alive and not self._body_open:
                    status = self._parser.get_status_code()
                    self._memo.note(data[:end], len(data) - end, status, self._headers)
                return
            if not self._body_open:
                self._head_bytes += len(data)
                if self._head_bytes > MAX_HEAD:
                    self._fail(Broke.NONSENSE, f"sent a head of more than {MAX_HEAD} bytes")
                    return
            sink.upstream_read()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        sink, self._sink = self._sink, None
        if sink is not None:
            if self._tunnel or (self._body_open and exc is None and not self._framed()):
                sink.upstream_done()  # the end of the connection is the end of this body
            elif self._body_open:
                sink.upstream_failed(Broke.CUT, str(exc or Broke.CUT.value))
            elif self._untouched and self.served:
                sink.upstream_failed(Broke.CLOSED_IDLE, Broke.CLOSED_IDLE.value)
            else:
                sink.upstream_failed(Broke.CLOSED, str(exc or Broke.CLOSED.value))
        self._on_lost(self)

    def _framed(self) -> bool:
        """Whether the answer said itself where its body ends."""
        return any(name in (b"content-length", b"transfer-encoding") for name, _ in self._headers)

    def _fail(self, how: Broke, detail: str) -> None:
        sink, self._sink = self._sink, None
        if self._transport is not None:
            self._transport.abort()
        if sink is not None:
            sink.upstream_failed(how, detail)

    # ----------------------------------------------------------------------------- parser callbacks

    def on_message_begin(self) -> None:
        self._headers, self._reason = [], b""

    def on_status(self, reason: bytes) -> None:
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._body_open:  # else a trailer, which is never one of the head's fields
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        sink = self._sink
        self._interim = status < 200 and status != 101
        if sink is None:
            return
        if self._interim:
            self._interims += 1
            if self._interims > MAX_INTERIM:
                self._fail(Broke.NONSENSE, f"sent more than {MAX_INTERIM} interim answers")
                return
            sink.upstream_interim(status, self._headers)
            return
        self._body_open = True
        self._keep_alive = self._parser.should_keep_alive()
        sink.upstream_head(status, self._reason, self._headers)
        if self._no_body:
            self._complete(fresh_parser=True)

    def on_body(self, chunk: bytes) -> None:
        if self._sink is not None:
            self._sink.upstream_body(chunk)

    def on_message_complete(self) -> None:
        if self._interim:
            self._interim, self._head_bytes = False, 0
        elif self._parser.get_status_code() != 101:
            self._complete(fresh_parser=False)

    def _complete(self, *, fresh_parser: bool) -> None:
        sink, self._sink = self._sink, None
        if sink is None:
            return
        self._body_open, self._head_bytes, self._no_body = False, 0, False
        self._interims = 0
        self.served += 1
        if fresh_parser:
            # The old one waits for a body that a HEAD's answer never has.
            self._parser = httptools.HttpResponseParser(self)
        # An answer that came before its request was whole leaves the rest of it on the line.
        reusable = self._keep_alive and not self._request_open and not self.lost
        if not reusable and self._transport is not None:
            self._transport.close()
        sink.upstream_done()
        if reusable:
            self._on_idle(self)


class _Nobody:
    """The sink of a discarded answer."""

    def upstream_head(self, status: int, reason: bytes, headers: Headers) -> None: ...
    def upstream_interim(self, status: int, headers: Headers) -> None: ...
    def upstream_body(self, chunk: bytes) -> None: ...
    def upstream_read(self) -> None: ...
    def upstream_upgraded(self, early: bytes) -> None: ...
    def upstream_writable(self) -> None: ...
    def upstream_done(self) -> None: ...
    def upstream_whole(self, known: Known, body: bytes) -> None: ...
    def upstream_failed(self, how: Broke, detail: str) -> None: ...


_NOBODY = _Nobody()
