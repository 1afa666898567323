"""The generate extension of OIP: its two operations, as calls.

Parameters may stand beside the text or in `parameters`; the replica reads them, the gateway looks
only for what bounds the work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from gateway.generation.door import Door
from gateway.lane import Exchange
from gateway.relay.scan import fields_of

# OIP's timeouts are in microseconds.
TIMEOUT_UNIT_S = 1e-6

Act = Callable[[Exchange, str, str | None], None]


class Doors(Protocol):
    def door(self, model: str) -> Door:
        """Raises ModelNotFound."""


def acts(doors: Doors) -> dict[str, Act]:
    """For `OipSurface(generative=…)`."""

    def act(surface: str) -> Act:
        def generate(exchange: Exchange, model: str, version: str | None) -> None:
            door = doors.door(model)
            body = bytes(exchange.body)
            fields = flat(fields_of(body, door.fields))
            door.call(
                exchange,
                surface,
                body,
                fields,
                openai=False,
                version=version,
                timeout_unit_s=TIMEOUT_UNIT_S,
            )

        return generate

    return {"generate": act("generate"), "generate_stream": act("generate_stream")}


def flat(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is within `parameters` too."""
    inner = fields.get("parameters")
    return {**inner, **fields} if isinstance(inner, dict) else fields
