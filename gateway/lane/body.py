"""The body of one request, from the socket's bytes to what its handler asked for.

Undoes the framing, the content coding of buffered bodies, and keeps the size limit while doing so.
Invariant: never more than the limit is kept or handed on, and no byte past the body is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.lane.chunked import ChunkedDecoder
from gateway.lane.head import CHUNKED, RequestHead
from gateway.lane.inflate import Inflater
from gateway.lane.limits import Limits
from gateway.lane.refusal import Refused

if TYPE_CHECKING:
    from gateway.lane.exchange import Exchange, Handler


class Body:
    """`exchange` None: the answer has gone out before the body came; the rest is read and dropped.
    `received` counts bytes on the wire; `seen` and `since` are the sweep's own notes."""

    __slots__ = (
        "_chunks",
        "_inflater",
        "_left",
        "_pieces",
        "_room",
        "done",
        "exchange",
        "handler",
        "received",
        "seen",
        "since",
    )

    def __init__(
        self, exchange: Exchange, handler: Handler, head: RequestHead, limits: Limits, now: float
    ) -> None:
        self.exchange: Exchange | None = exchange
        self.handler = handler
        self._left = head.length
        self._chunks = ChunkedDecoder(limits.max_head) if head.length == CHUNKED else None
        self._room = limits.max_body
        self._inflater = (
            Inflater(head.encoding, limits.max_body)
            if head.encoding and not handler.streams
            else None
        )
        self._pieces: list[bytes] = []
        self.received = self.seen = 0
        self.since = now
        self.done = False

    @property
    def left(self) -> int | None:
        """Bytes still to come, None where nobody knows."""
        return None if self._chunks is not None else self._left

    def feed(self, data: bytes, at: int) -> int:
        """Read on from `data[at:]`; returns where it stopped. Raises Refused."""
        start = at
        pieces: list[bytes] = []
        if self._chunks is not None:
            at = self._chunks.feed(data, at, pieces)
            self.done = self._chunks.done
            self._room -= sum(map(len, pieces))
            if self._room < 0:
                raise Refused(413, "the body is larger than the limit")
        else:
            piece = data[at : at + self._left]
            pieces.append(piece)
            self._left -= len(piece)
            at += len(piece)
            self.done = not self._left
        self.received += at - start
        if self.exchange is None or not pieces:
            return at
        if self.handler.streams:
            self._hand_on(self.exchange, pieces)
        elif self._inflater is None:
            self._pieces += pieces
        else:
            for piece in pieces:
                self._inflater.feed(piece, self._pieces)
        return at

    def progress(self, now: float, limits: Limits) -> bool:
        """Whether it still comes fast enough; asked by the sweep."""
        if now - self.since > limits.body_timeout_s:
            due = limits.min_body_rate * limits.body_timeout_s
            if self.received - self.seen < due:
                return False
            self.seen, self.since = self.received, now
        return True

    def whole(self) -> bytes:
        """All of a buffered body, once done. Raises Refused if its compression is cut off."""
        if self._inflater is not None:
            self._inflater.finish()
        pieces, self._pieces = self._pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _hand_on(self, exchange: Exchange, pieces: list[bytes]) -> None:
        # One call per read, so that pause_body() takes effect before the next piece.
        if exchange.on_body is not None:
            exchange.on_body(pieces[0] if len(pieces) == 1 else b"".join(pieces))
