"""Message heads on their way through the relay: which fields stop here and which are added.

Pure functions over bytes. Nothing here reads a body or knows a connection. Invariant: no
hop-by-hop field crosses the gateway, whichever side nominated it (RFC 9110 §7.6.1), and exactly
one framing of the body goes out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

Headers = list[tuple[bytes, bytes]]

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# Framing and expectation are the gateway's own on each side, the deadline is what is left of it,
# and what is said of the client must be true.
_REQUEST_OWN = HOP_BY_HOP | {
    b"content-length",
    b"expect",
    b"host",
    b"x-deadline-ms",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-proto",
}
# The gateway says these itself; Content-Type goes another way.
_ANSWER_OWN = HOP_BY_HOP | {
    b"content-length",
    b"content-type",
    b"date",
    b"x-request-id",
    b"x-served-by",
}
CHUNKED = -1
NO_BODY = -2


def nominated(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """The fields that a Connection header makes hop-by-hop for this message."""
    tokens: set[bytes] = set()
    for name, value in headers:
        if name == b"connection":
            tokens |= {token.strip().lower() for token in value.split(b",")}
    return frozenset(tokens)


def request_start(
    method: bytes,
    target: bytes,
    headers: Headers,
    *,
    host: bytes | None,
    scheme: bytes,
    upgrade: bool = False,
    ours: frozenset[bytes] = frozenset(),
    key: bytes = b"",
) -> bytes:
    """What of a request's head is the same whenever a client sends these bytes; `request_end`
    follows. `host` None keeps the client's. `upgrade`: its Connection and Upgrade fields stay.
    `ours`: fields that were meant for the gateway; `key`: a line that replaces them."""
    dropped = _REQUEST_OWN | ours if ours else _REQUEST_OWN
    original_host = via = protocol = b""
    own: Headers = []
    lines = []
    for field in headers:
        if field[0] in dropped:
            own.append(field)
        else:
            lines.append(b"%b: %b\r\n" % field)
    for name, value in own:
        if name == b"host":
            original_host = value
        elif name == b"x-forwarded-for":
            via += value + b", "
        elif name == b"upgrade" and upgrade:
            protocol = b"connection: upgrade\r\nupgrade: %b\r\n" % value
        elif name == b"connection":
            hop = nominated(own)
            lines = [
                b"%b: %b\r\n" % field
                for field in headers
                if field[0] not in dropped and field[0] not in hop
            ]
    return b"%b %b HTTP/1.1\r\nhost: %b\r\n%b%bx-forwarded-proto: %b\r\n%bx-forwarded-for: %b" % (
        method,
        target,
        original_host if host is None else host,
        b"".join(lines) + key,
        protocol,
        scheme,
        b"x-forwarded-host: %b\r\n" % original_host if original_host else b"",
        via,
    )


def request_end(client: bytes, length: int, extra: bytes) -> bytes:
    """The rest: who the client is, how the body is framed (bytes, CHUNKED or NO_BODY), and
    `extra` lines, rendered."""
    if length >= 0:
        return b"%b\r\n%bcontent-length: %d\r\n\r\n" % (client, extra, length)
    framing = b"transfer-encoding: chunked\r\n" if length == CHUNKED else b""
    return b"%b\r\n%b%b\r\n" % (client, extra, framing)


class AnswerHead(NamedTuple):
    """An upstream's answer as the client gets it. `length` None: chunked, or until the end.
    `events`: an event stream in plain text, which the gateway may speak in. `fields`: rendered."""

    content_type: bytes
    length: int | None
    fields: bytes
    events: bool


def read_answer(headers: Headers) -> AnswerHead:
    """Raises ValueError where the length is no number."""
    content_type, length, fields = b"", None, b""
    encoded = False
    dropped = _ANSWER_OWN
    for name, value in headers:
        if name == b"connection":
            dropped = dropped | nominated([(name, value)])
    for name, value in headers:
        if name not in dropped:
            fields += b"%b: %b\r\n" % (name, value)
            encoded = encoded or name == b"content-encoding"
        elif name == b"content-type":
            content_type = value
        elif name == b"content-length":
            length = int(value)
    events = content_type[:17].lower() == b"text/event-stream" and not encoded
    return AnswerHead(content_type, length, fields, events)


def upgrade_fields(headers: Headers) -> bytes:
    """Of a 101: the protocol that was agreed on, and what the upstream says beside it."""
    fields = read_answer(headers).fields
    for name, value in headers:
        if name == b"upgrade":
            fields += b"connection: upgrade\r\nupgrade: %b\r\n" % value
    return fields
