"""Frames between server and workers, and the handshake by which each knows the other.

Layout: length of the head (4 bytes), length of the body (8), both little-endian; the head, JSON;
the body, raw. Both sides prove that they know the run's token, over fresh nonces (HMAC-SHA256);
what follows is neither signed nor encrypted, so the network must be trusted. Invariant: nothing
larger than its bound is ever read into memory.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import socket
import struct
from typing import Any

import orjson

from trainer.errors import TrainerError

PROTOCOL = 1
HEAD_LIMIT = 64 * 1024
_LENGTHS = struct.Struct("<IQ")


class PeerBroke(TrainerError):
    """The other side sent what is no frame, or none that was expected."""

    code = "peer_broke"


class PeerRefused(TrainerError):
    """The other side does not let this one take part; the message says why."""

    code, status = "peer_refused", 2


def encode(head: dict[str, Any], body: memoryview | bytes = b"") -> list[bytes | memoryview]:
    text = orjson.dumps(head)
    assert len(text) <= HEAD_LIMIT
    return [_LENGTHS.pack(len(text), len(body)) + text, body]


def _lengths(raw: bytes | bytearray, limit: int) -> tuple[int, int]:
    head, body = _LENGTHS.unpack(raw)
    if head > HEAD_LIMIT or body > limit:
        raise PeerBroke(f"a frame of {head} and {body} bytes; the bounds are {HEAD_LIMIT}, {limit}")
    return head, body


def _head(raw: bytes | bytearray) -> dict[str, Any]:
    try:
        found = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise PeerBroke("a frame's head is no JSON") from error
    if not isinstance(found, dict):
        raise PeerBroke("a frame's head is no object")
    return found


async def read(reader: asyncio.StreamReader, limit: int) -> tuple[dict[str, Any], bytes]:
    """Raises PeerBroke, and IncompleteReadError at the connection's end."""
    head, body = _lengths(await reader.readexactly(_LENGTHS.size), limit)
    found = _head(await reader.readexactly(head))
    return found, await reader.readexactly(body)


def receive(sock: socket.socket, limit: int) -> tuple[dict[str, Any], bytearray]:
    """Raises PeerBroke, and OSError at the connection's end."""
    head, body = _lengths(_exactly(sock, _LENGTHS.size), limit)
    return _head(_exactly(sock, head)), _exactly(sock, body)


def send(sock: socket.socket, head: dict[str, Any], body: memoryview | bytes = b"") -> None:
    for part in encode(head, body):
        sock.sendall(part)


def _exactly(sock: socket.socket, count: int) -> bytearray:
    buffer = bytearray(count)
    view, at = memoryview(buffer), 0
    while at < count:
        got = sock.recv_into(view[at:])
        if not got:
            raise ConnectionResetError("the connection ended")
        at += got
    return buffer


def nonce() -> str:
    return secrets.token_hex(16)


def proof(token: str, role: str, server: str, worker: str) -> str:
    """What only one who knows the token can say after both nonces."""
    text = f"{role}/{PROTOCOL}/{server}/{worker}".encode()
    return hmac.new(token.encode(), text, hashlib.sha256).hexdigest()


def proves(found: object, token: str, role: str, server: str, worker: str) -> bool:
    return isinstance(found, str) and hmac.compare_digest(
        found.encode(), proof(token, role, server, worker).encode()
    )
