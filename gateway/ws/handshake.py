"""The opening handshake: whether a request may become a WebSocket, and what to answer.

Pure. Browsers let any page open a WebSocket to any host, so a page from elsewhere is refused: by
its Origin, which browsers always send and other clients need not.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Collection, Iterable
from urllib.parse import urlsplit

from gateway.errors import BadRequest, Forbidden
from gateway.lane import field
from gateway.ws.errors import UpgradeRequired

PROTOCOL = b"penstock.v1"
VERSION = b"13"
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
# What a 426 tells beside its text.
REQUIRED = b"upgrade: websocket\r\nsec-websocket-version: 13\r\n"


def accept(headers: Iterable[tuple[bytes, bytes]], origins: Collection[str] = ()) -> bytes:
    """Header lines for the 101. `headers`: names in lower case. Raises GatewayError."""
    found: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        found.setdefault(name, []).append(value)
    if b"websocket" not in [token.lower() for token in _tokens(found.get(b"upgrade", ()))]:
        raise UpgradeRequired("this path speaks WebSocket; upgrade the connection")
    if found.get(b"sec-websocket-version") != [VERSION]:
        raise UpgradeRequired("the only WebSocket version spoken here is 13")
    keys = found.get(b"sec-websocket-key", [])
    if len(keys) != 1 or not _is_key(keys[0]):
        raise BadRequest(
            "sec-websocket-key must be 16 bytes in base64, once", param="sec-websocket-key"
        )
    _check_origin(found, origins)
    digest = base64.b64encode(hashlib.sha1(keys[0] + _GUID, usedforsecurity=False).digest())
    fields = b"upgrade: websocket\r\nconnection: upgrade\r\n" + field(
        b"sec-websocket-accept", digest
    )
    if PROTOCOL in _tokens(found.get(b"sec-websocket-protocol", ())):
        fields += field(b"sec-websocket-protocol", PROTOCOL)
    return fields


def _tokens(values: Iterable[bytes]) -> set[bytes]:
    return {token.strip() for value in values for token in value.split(b",")}


def _is_key(value: bytes) -> bool:
    try:
        return len(base64.b64decode(value, validate=True)) == 16
    except binascii.Error:
        return False


def _check_origin(found: dict[bytes, list[bytes]], origins: Collection[str]) -> None:
    said = found.get(b"origin", [])
    if not said:
        return
    origin = said[0].decode("latin-1")
    host = found.get(b"host", [b""])[0].decode("latin-1")
    if len(said) == 1 and (origin in origins or _same_or_loopback(origin, host)):
        return
    raise Forbidden(
        f"pages of {origin!r} may not open a WebSocket here; the page must come from this server, "
        "from this machine, or from an origin that the operator allows",
        param="origin",
    )


def _same_or_loopback(origin: str, host: str) -> bool:
    """A proxy may end TLS before us, so the scheme and its own port do not count."""
    try:
        parts = urlsplit(origin)
        port = parts.port
    except ValueError:
        return False
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return False
    if parts.hostname in _LOOPBACK:
        return True
    usual = 443 if parts.scheme == "https" else 80
    name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    names = {f"{name}:{port or usual}"} | ({name} if port in (None, usual) else set())
    return host.lower() in names
