"""A request's body until it is known where the request goes.

Small bodies are gathered whole, so that they can be sent again elsewhere; larger ones only until
the model's name was found in them, where that says where to go. Invariant: what all requests of one
worker hold here together is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from gateway.errors import GatewayError, NoReplica, TooLarge
from gateway.lane import Exchange
from gateway.relay.destination import Destination
from gateway.relay.reply import refuse
from gateway.relay.scan import FieldScan, fields_of

# The bodies of one worker that are being gathered.
HELD_BYTES = 256 * 2**20
# A model's name must come within so much of a body.
MODEL_WITHIN = 16 * 2**20


class Opens(Protocol):
    """Where a request goes once its model is known."""

    def open(
        self,
        exchange: Exchange,
        body: bytes,
        fields: Mapping[str, Any] | None = None,
        *,
        complete: bool,
    ) -> None: ...


# The fields of a body, and its bytes so far -> where it goes. Raises GatewayError.
Choose = Callable[[Mapping[str, Any], bytes], Opens]


class Held:
    """Bytes that intakes hold, in one worker."""

    __slots__ = ("bytes", "limit")

    def __init__(self, limit: int = HELD_BYTES) -> None:
        self.bytes, self.limit = 0, limit


class Intake:
    """For a destination that is known from the head."""

    __slots__ = ("_held", "_pieces", "_size", "exchange")

    def __init__(self, exchange: Exchange, held: Held) -> None:
        self.exchange, self._held = exchange, held
        self._pieces: list[bytes] = []
        self._size = 0

    def listen(self) -> None:
        exchange = self.exchange
        exchange.on_body, exchange.on_body_end = self._body, self._whole
        exchange.on_gone = self._release

    def _body(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._size += len(piece)
        self._held.bytes += len(piece)
        self._more(piece)

    def _more(self, piece: bytes) -> None:
        raise NotImplementedError

    def _whole(self) -> None:
        raise NotImplementedError

    def _take(self) -> bytes:
        """What has come, which is no longer held here."""
        pieces = self._pieces
        self._release()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _release(self) -> None:
        self._held.bytes -= self._size
        self._pieces, self._size = [], 0


class RouteIntake(Intake):
    __slots__ = ("_destination",)

    def __init__(self, exchange: Exchange, held: Held, destination: Destination) -> None:
        super().__init__(exchange, held)
        self._destination = destination

    def _more(self, piece: bytes) -> None:
        if self._size > self._destination.replay or self._held.bytes > self._held.limit:
            self._destination.open(self.exchange, self._take(), complete=False)

    def _whole(self) -> None:
        body, destination = self._take(), self._destination
        wanted = destination.fields
        fields = fields_of(body, wanted) if wanted and body[:1] == b"{" else None
        destination.open(self.exchange, body, fields, complete=True)


class ModelIntake(Intake):
    """The body's `model` says where it goes. `wanted`: the fields to look for, that one included;
    of a body larger than `replay`, only those that come before it count for the session."""

    __slots__ = ("_choose", "_replay", "_scan", "_wanted")

    def __init__(
        self, exchange: Exchange, held: Held, choose: Choose, wanted: frozenset[str], replay: int
    ) -> None:
        super().__init__(exchange, held)
        self._choose, self._wanted, self._replay = choose, wanted, replay
        self._scan: FieldScan | None = None

    def _more(self, piece: bytes) -> None:
        if self._size <= self._replay and self._held.bytes <= self._held.limit:
            return
        scan = self._scan
        if scan is None:
            scan = self._scan = FieldScan(self._wanted, last="model")
            for earlier in self._pieces:
                scan.feed(earlier)
        else:
            scan.feed(piece)
        if "model" in scan.found or scan.done:
            self._go(scan.found, complete=False)
        elif self._held.bytes > self._held.limit:
            self._refuse(NoReplica("too many large requests are arriving at once", retry_after=1.0))
        elif self._size > MODEL_WITHIN:
            self._refuse(
                TooLarge(
                    f"model: not found within {MODEL_WITHIN >> 20} MiB; send it before the rest"
                )
            )

    def _whole(self) -> None:
        fields = self._scan.found if self._scan else fields_of(self._joined(), self._wanted)
        self._go(fields, complete=True)

    def _joined(self) -> bytes:
        if len(self._pieces) != 1:
            self._pieces = [b"".join(self._pieces)]
        return self._pieces[0]

    def _go(self, fields: Mapping[str, Any], *, complete: bool) -> None:
        exchange, body = self.exchange, self._take()
        try:
            destination = self._choose(fields, body)
        except GatewayError as error:
            refuse(exchange, error, openai=True)
            return
        destination.open(exchange, body, fields, complete=complete)

    def _refuse(self, error: GatewayError) -> None:
        self._release()
        refuse(self.exchange, error, openai=True)
