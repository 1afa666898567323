"""The messages of the socket's protocol, as docs/websocket.md has them.

Pure: what a message says of itself is read and checked here, once, and answers are rendered here.
A tensor request's own fields are OIP's and are read by `oip.parse`. Invariant: a message that names
a request is answered under its id; one that cannot be attributed to any breaks the socket.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from math import inf, isfinite
from typing import Any, NamedTuple

import orjson

from backends.wire import Buffer
from gateway.errors import BadRequest, Cancelled, GatewayError
from gateway.oip import Rendered
from gateway.oip.parse import load
from gateway.oip.terms import MAX_ID, MAX_PRIORITY, Terms
from gateway.request import Answer
from gateway.ws.frames import BINARY, INVALID_DATA, TEXT, UNSUPPORTED_DATA, Broken, head

_U32 = struct.Struct("<I")
_NOTHING = memoryview(b"")
# The longest deadline: a day. Whoever means "none" leaves the field out.
_MAX_DEADLINE_MS = 86_400_000.0
_ASKED = frozenset({"deadline_ms", "priority", "session"})


class Message(NamedTuple):
    """`document` lacks the type; `rest`: the bytes behind the JSON of a binary message."""

    type: str
    document: dict[str, Any]
    rest: memoryview


class Asked(NamedTuple):
    """What a request asks of the gateway beside its content. `deadline_s`: after its arrival.
    `version`: what is pinned where the message itself pins none."""

    session: str | None = None
    deadline_s: float = inf
    priority: int = 0
    version: str | None = None


NOTHING_ASKED = Asked()


def asked_by(terms: Terms) -> Asked:
    """What a connection's headers ask for all of its requests."""
    made = Asked(terms.session, terms.deadline_s, terms.priority, terms.version)
    return NOTHING_ASKED if made == NOTHING_ASKED else made


def read_message(opcode: int, payload: Buffer) -> Message:
    """Raises Broken where there is no message in it."""
    if opcode == TEXT:
        text, rest = payload, _NOTHING
    else:
        view = memoryview(payload)
        end = 4 + _U32.unpack_from(view)[0] if len(view) >= 4 else 4
        if end > len(view):
            raise Broken(
                INVALID_DATA,
                "a binary message is the JSON's length (u32, little-endian), the JSON, the tensors",
            )
        text, rest = view[4:end], view[end:]
    try:
        document = load(text)
    except BadRequest as error:
        raise Broken(INVALID_DATA, error.message) from error
    kind = document.pop("type", None)
    if type(kind) is not str:
        raise Broken(INVALID_DATA, "a message is a JSON object with a type")
    return Message(kind, document, rest)


def read_id(document: Mapping[str, Any]) -> str:
    """The request that a message is about. Raises Broken."""
    name = document.get("id")
    if type(name) is not str or not 0 < len(name) <= MAX_ID:
        raise Broken(INVALID_DATA, f"a message needs an id: a string of 1 to {MAX_ID} characters")
    return name


def refuse_tensors(message: Message) -> None:
    """Raises Broken for bytes that nothing would read."""
    if len(message.rest):
        raise Broken(UNSUPPORTED_DATA, f"a message of type {message.type} carries no tensors")


def take_asked(document: dict[str, Any], usual: Asked) -> Asked:
    """Takes the fields out of the document; `usual` where it says nothing. Raises BadRequest."""
    if _ASKED.isdisjoint(document):
        return usual
    session, deadline_s, priority, version = usual
    if "session" in document:
        session = document.pop("session")
        if type(session) is not str or not 0 < len(session) <= MAX_ID:
            raise _expected("session", f"a string of 1 to {MAX_ID} characters")
    if "deadline_ms" in document:
        said = document.pop("deadline_ms")
        if type(said) not in (int, float) or not isfinite(said) or not 0 < said <= _MAX_DEADLINE_MS:
            raise _expected("deadline_ms", "a number of milliseconds above 0, a day at most")
        deadline_s = said / 1e3
    if "priority" in document:
        priority = document.pop("priority")
        if type(priority) is not int or abs(priority) > MAX_PRIORITY:
            raise _expected(
                "priority",
                f"a whole number from -{MAX_PRIORITY} to {MAX_PRIORITY}; higher is sooner",
            )
    return Asked(session, deadline_s, priority, version)


def take_text(document: dict[str, Any], name: str) -> str | None:
    """Raises BadRequest."""
    value = document.pop(name, None)
    if value is not None and type(value) is not str:
        raise _expected(name, "a string")
    return value


def result_lead(replica: str) -> bytes:
    """How every result begins that this replica made."""
    return b'{"type":"result","served_by":%b,' % orjson.dumps(replica)


def result_frame(lead: bytes, answer: Answer, rendered: Rendered, *, timing: bool) -> bytes:
    """A result: OIP's own JSON object, with our fields before its fields."""
    if timing:
        lead += b'"timing":{"queue_ms":%.3f,"compute_ms":%.3f,"batch":%d},' % (
            answer.queue_us / 1e3,
            answer.compute_us / 1e3,
            answer.batch,
        )
    body = rendered.body
    if isinstance(body, bytes):
        return b"".join((head(TEXT, len(lead) + len(body) - 1), lead, body[1:]))
    text, *tensors = body
    length = len(lead) + len(text) - 1
    size = 4 + length + sum(map(len, tensors))
    return b"".join((head(BINARY, size), _U32.pack(length), lead, text[1:], *tensors))


def object_frame(kind: str, name: str, fields: Mapping[str, Any], rest: Buffer) -> bytes:
    """A message with these fields, and those of `rest`, which is a JSON object already."""
    lead = orjson.dumps({"type": kind, "id": name, **fields})
    text = bytes(rest).strip()
    if text == b"{}":
        return head(TEXT, len(lead)) + lead
    return b"".join((head(TEXT, len(lead) + len(text) - 1), lead[:-1], b",", text[1:]))


def text_frame(kind: str, name: str | None, fields: Mapping[str, Any]) -> bytes:
    """Any other message. `name`: the request's id."""
    document = {"type": kind, **fields} if name is None else {"type": kind, "id": name, **fields}
    text = orjson.dumps(document)
    return head(TEXT, len(text)) + text


def error_frame(name: str, error: GatewayError) -> bytes:
    """The terminal message of a request that failed."""
    if isinstance(error, Cancelled):
        fields: dict[str, Any] = {"status": error.status, "code": "cancelled"}
        return text_frame("error", name, {**fields, "message": "cancelled by the client"})
    fields = {"status": error.status, "code": error.code, "message": error.message}
    if error.param is not None:
        fields["param"] = error.param
    if error.retryable:
        fields["retryable"] = True
    if error.retry_after is not None and error.retry_after < inf:
        fields["retry_after_ms"] = round(error.retry_after * 1e3)
    return text_frame("error", name, fields)


def _expected(name: str, what: str) -> BadRequest:
    return BadRequest(f"{name} must be {what}", param=name)
