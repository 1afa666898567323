"""The body of one request, from the socket's bytes to what its handler asked for.

Undoes the framing, and the content coding of bodies that are gathered for the handler, and keeps
the limits while doing so. Invariant: never more than they allow is kept, by one body or by all, and
no byte past the body is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.lane.chunked import ChunkedDecoder
from gateway.lane.framing import CHUNKED, Framing
from gateway.lane.inflate import Inflater
from gateway.lane.refusal import Refused
from gateway.lane.timeouts import Pace

if TYPE_CHECKING:
    from gateway.lane.exchange import Exchange, Handler
    from gateway.lane.lane import Lane


# What is inflated grows a thousandfold at worst. So little is read at a time, and after so much of
# it the other connections have their turn.
SIP, TURN_BYTES = 1024, 256 * 1024


class Body:
    """`exchange` None: the answer has gone out before the body came; the rest is read and dropped.
    `handler`: whom to call once the body is whole; None for one that streams, who was called.
    `uninvited`: the client waits for 100 (Continue)."""

    __slots__ = (
        "_chunks",
        "_held",
        "_inflater",
        "_lane",
        "_left",
        "_pieces",
        "_room",
        "_swollen",
        "done",
        "exchange",
        "handler",
        "pace",
        "uninvited",
    )

    tunnel = False

    def __init__(
        self,
        exchange: Exchange,
        handler: Handler | None,
        framing: Framing,
        lane: Lane,
        now: float,
    ) -> None:
        limits = lane.limits
        self.exchange: Exchange | None = exchange
        self.handler = handler
        self.pace = Pace(now)
        self.uninvited = framing.expects_continue
        self.done = False
        self._left = framing.length
        self._chunks = ChunkedDecoder(limits.max_head) if framing.length == CHUNKED else None
        self._room = limits.max_body
        self._inflater = (
            Inflater(framing.encoding, limits.max_body)
            if framing.encoding and handler is not None
            else None
        )
        self._pieces: list[bytes] = []
        self._lane = lane
        self._held = 0  # bytes in `_pieces`
        self._swollen = 0  # bytes inflated in this turn

    def is_worth_reading(self, most: int) -> bool:
        """Whether the rest, which nobody wants, is known to be small and on its way."""
        return self._chunks is None and self._left <= most and not self.uninvited

    def feed(self, data: bytes, at: int) -> int:
        """Read on from `data[at:]`; returns where it stopped. Raises Refused."""
        if self._inflater is None:
            return self._read(data, at)
        return at + self._read(data[at : at + SIP], 0)

    def ends_turn(self) -> bool:
        """Whether this turn of the loop has taken enough; asked after each feed."""
        if self._swollen < TURN_BYTES:
            return False
        self._swollen = 0
        return True

    def _read(self, data: bytes, at: int) -> int:
        start = at
        pieces: list[bytes] = []
        self.uninvited = False
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
        self.pace.received += at - start
        if self.exchange is None or not pieces:
            return at
        if self.handler is None:
            # One call per read, so that pause_body() takes effect before the next piece.
            self.exchange.pass_on(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        else:
            self._gather(pieces)
        return at

    def _gather(self, pieces: list[bytes]) -> None:
        lane, had = self._lane, len(self._pieces)
        if self._inflater is None:
            self._pieces += pieces
        else:
            for piece in pieces:
                self._inflater.feed(piece, self._pieces)
        size = sum(map(len, self._pieces[had:]))
        self._held += size
        if self._inflater is not None:
            self._swollen += size
        lane.gathered += size
        if lane.gathered > lane.limits.max_bodies:
            retry = b"retry-after: 1\r\n"
            raise Refused(503, "too many large requests are arriving at once", retry)

    def release(self) -> None:
        """What was gathered is in the handler's hands, or dropped."""
        self._lane.gathered -= self._held
        self._held = 0

    def whole(self) -> bytes:
        """All of a gathered body, once done. Raises Refused if its compression is cut off."""
        if self._inflater is not None:
            self._inflater.finish()
        pieces, self._pieces = self._pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class Tunnel(Body):
    """After 101 (Switching Protocols) bytes pass as they come, until one side closes."""

    __slots__ = ()

    tunnel = True

    def feed(self, data: bytes, at: int) -> int:
        if self.exchange is not None:
            self.exchange.pass_on(data[at:])
        return len(data)
