"""A native model as a destination of /v1: its paths, and what becomes of a request to one of them.

The counterpart of the relay's `Destination`. It starts calls and keeps none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.errors import MethodNotAllowed, NotFound
from gateway.generation.door import Door
from gateway.lane import Exchange, field
from gateway.openai.gathering import Gathering
from gateway.relay.intake import Held
from gateway.relay.reply import refuse
from gateway.relay.scan import fields_of

SURFACES = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/responses": "responses",
    "/v1/embeddings": "embeddings",
}
# A body is looked into whole, however large it is.
REPLAY = 256 * 2**10


class NativeDestination:
    """`fields`: of a body, that are looked for. `replay`: bodies up to this size are whole when
    they come here."""

    replay = REPLAY

    def __init__(self, door: Door, held: Held) -> None:
        self.door, self._held = door, held
        self.fields = door.fields

    @property
    def model(self) -> str:
        return self.door.pool.name

    @property
    def listed(self) -> bool:
        """Whether it is a model of /v1, as far as its replicas have said."""
        return not self.door.pool.surfaces.isdisjoint(SURFACES.values())

    def open(
        self,
        exchange: Exchange,
        body: bytes,
        fields: Mapping[str, Any] | None = None,
        *,
        complete: bool,
    ) -> None:
        """`body`: what is there of it; `fields`: of its JSON object, where that was looked into."""
        surface = SURFACES.get(exchange.path)
        if surface is None:
            known = ", ".join(SURFACES)
            error = NotFound(f"{exchange.path} is not offered for this model; {known} are")
            refuse(exchange, error, openai=True)
        elif exchange.method != "POST":
            wrong = MethodNotAllowed(f"{exchange.path} takes POST", allow="POST")
            refuse(exchange, wrong, openai=True, fields=field(b"allow", b"POST"))
        elif complete and fields is not None:
            self.door.call(exchange, surface, body, fields, openai=True)
        else:

            def then(whole: bytes) -> None:
                found = fields_of(whole, self.fields)
                self.door.call(exchange, surface, whole, found, openai=True)

            if complete:
                then(body)
            else:
                Gathering(exchange, self._held, body, then)
