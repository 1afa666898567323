"""The rest of a request's body, where a model was found in it before it was whole.

A native replica gets a body in one frame, so it is gathered here, within what the intakes of one
worker may hold together. Invariant: what is held is given back at the end, whoever brings it.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.errors import NoReplica
from gateway.lane import Exchange
from gateway.relay.intake import Held, Intake
from gateway.relay.reply import refuse


class Gathering(Intake):
    __slots__ = ("_then",)

    def __init__(
        self, exchange: Exchange, held: Held, begun: bytes, then: Callable[[bytes], None]
    ) -> None:
        """`begun`: what has come; `then` gets all of it."""
        super().__init__(exchange, held)
        self._then = then
        self.listen()
        self._body(begun)

    def _more(self, piece: bytes) -> None:
        if self._held.bytes > self._held.limit:
            self._release()
            error = NoReplica("too many large requests are arriving at once", retry_after=1.0)
            refuse(self.exchange, error, openai=True)

    def _whole(self) -> None:
        self._then(self._take())
