"""The gateway's own words on relayed paths: its errors, in the form that the path's clients read.

Owns that form. On /v1 it is OpenAI's, which SDKs parse; elsewhere that of the other surfaces.
"""

from __future__ import annotations

import orjson

from gateway.errors import GatewayError
from gateway.lane import Exchange
from gateway.retry_advice import advice

# What SDKs call the classes of errors; they go by the status, people read the type.
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}
NO_RETRY = b"x-should-retry: false\r\n"


def error_document(error: GatewayError, *, openai: bool) -> bytes:
    if not openai:
        return orjson.dumps({"error": error.message})
    return orjson.dumps(
        {
            "error": {
                "message": error.message,
                "type": _TYPES.get(error.status, "server_error"),
                "param": error.param,
                "code": error.code,
            }
        }
    )


def refuse(exchange: Exchange, error: GatewayError, *, openai: bool, fields: bytes = b"") -> None:
    """Answer with the error; `fields`: further header lines, rendered."""
    fields += advice(error, fields)
    exchange.respond(error.status, error_document(error, openai=openai), fields=fields)


def error_event(error: GatewayError, *, openai: bool) -> bytes:
    """The last event of a stream that cannot go on. OpenAI's SDKs raise on it; EventSource has a
    listener for events of this name."""
    name = b"" if openai else b"event: error\n"
    return b"%bdata: %b\n\n" % (name, error_document(error, openai=openai))
