"""Server-sent events and OpenAI's error bodies: the outer form of replies on several surfaces."""

from __future__ import annotations

from typing import Any

import orjson

from backends.wire import Fault

JSON, SSE = "application/json", "text/event-stream"
DONE = b"data: [DONE]\n\n"


def event(value: Any) -> bytes:
    return b"data: %b\n\n" % orjson.dumps(value)


def named_event(value: dict[str, Any]) -> bytes:
    """An event that says its type in its name too."""
    return b"event: %b\n%b" % (value["type"].encode(), event(value))


def error_body(fault: Fault) -> dict[str, Any]:
    kind = "invalid_request_error" if fault.status < 500 else "server_error"
    return {
        "error": {
            "message": fault.message,
            "type": kind,
            "param": fault.param,
            "code": fault.code,
        }
    }
