"""Message heads on their way through the relay: which fields stop here and which are added.

Pure functions over bytes. Nothing here reads a body or knows a connection. Invariant: no
hop-by-hop field crosses the gateway, whichever side nominated it (RFC 9110 §7.6.1), and exactly
one framing of the body goes out.
"""

from __future__ import annotations

from collections.abc import Iterable

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
# Framing and expectation are the gateway's own on each side.
_REQUEST_OWN = HOP_BY_HOP | {b"content-length", b"expect", b"host"}
_RESPONSE_OWN = HOP_BY_HOP | {b"content-length"}
# What the gateway says itself; an upstream's claim would shadow it.
_CLIENT_ADDRESS = frozenset({b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"})


def nominated(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """The fields that a Connection header makes hop-by-hop for this message."""
    tokens: set[bytes] = set()
    for name, value in headers:
        if name == b"connection":
            tokens |= {token.strip().lower() for token in value.split(b",")}
    return frozenset(tokens)


def is_upgrade(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    headers = list(headers)
    return b"upgrade" in nominated(headers) and any(name == b"upgrade" for name, _ in headers)


def request_head(
    method: bytes,
    target: bytes,
    headers: Headers,
    *,
    host: bytes | None,
    content_length: int | None,
    client: bytes,
    scheme: bytes,
    extra: Iterable[tuple[bytes, bytes]] = (),
) -> bytes:
    """The request line and fields for the upstream.

    `content_length` frames the body; None means chunked, -1 means that there is no body. `host`
    None keeps the client's. An upgrade (WebSocket) keeps its Connection and Upgrade fields.
    """
    upgrade = is_upgrade(headers)
    dropped = _REQUEST_OWN | nominated(headers)
    original_host = b""
    forwarded: list[bytes] = []
    out = [method + b" " + target + b" HTTP/1.1\r\n"]
    fields: list[bytes] = []
    for name, value in headers:
        if name == b"host":
            original_host = value
        elif name == b"x-forwarded-for":
            forwarded.append(value)
        elif name not in dropped and name not in _CLIENT_ADDRESS:
            fields.append(b"%s: %s\r\n" % (name, value))
        elif upgrade and name == b"upgrade":
            fields.append(b"connection: upgrade\r\nupgrade: %s\r\n" % value)
    out.append(b"host: %s\r\n" % (original_host if host is None else host))
    out += fields
    out.append(b"x-forwarded-for: %s\r\n" % b", ".join([*forwarded, client]))
    out.append(b"x-forwarded-proto: %s\r\nx-forwarded-host: %s\r\n" % (scheme, original_host))
    for name, value in extra:
        out.append(b"%s: %s\r\n" % (name, value))
    if content_length is None:
        out.append(b"transfer-encoding: chunked\r\n")
    elif content_length >= 0:
        out.append(b"content-length: %d\r\n" % content_length)
    out.append(b"\r\n")
    return b"".join(out)


def response_fields(headers: Headers) -> Headers:
    """What of the upstream's answer goes on to the client; framing is the lane's to add."""
    dropped = _RESPONSE_OWN | nominated(headers)
    return [(name, value) for name, value in headers if name not in dropped]


def body_length(headers: Headers) -> int | None:
    """The answer's Content-Length, None where it has none (chunked, or until the end)."""
    for name, value in headers:
        if name == b"content-length":
            return int(value)
    return None


def is_event_stream(headers: Headers) -> bool:
    return any(
        name == b"content-type" and value.lower().startswith(b"text/event-stream")
        for name, value in headers
    )
