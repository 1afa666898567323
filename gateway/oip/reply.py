"""Answers on the protocol's surface: JSON documents, errors, and compressed infer responses.

Owns the error's form. Invariant: an error is UTF-8 JSON with the one key `error` at least, and is
never compressed: clients decode nothing else.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import orjson

from backends.wire import Buffer
from gateway.errors import GatewayError, MethodNotAllowed
from gateway.lane import Exchange, field
from gateway.retry_advice import advice

# Below it a compressed body is no smaller.
MIN_COMPRESSED = 256
# Compressing so much takes about a millisecond: more of it is done beside the loop.
MAX_INLINE = 64 * 1024
# The fastest: the client asked for fewer bytes, and the others wait for this one.
_LEVEL = 1
_WINDOW = {b"gzip": 31, b"deflate": 15}


def answer(exchange: Exchange, document: Any, status: int = 200) -> None:
    exchange.respond(status, orjson.dumps(document))


def refuse(exchange: Exchange, error: GatewayError, fields: bytes = b"") -> None:
    """`fields`: further header lines."""
    fields += advice(error, fields)
    if isinstance(error, MethodNotAllowed):
        fields += field(b"allow", error.allow)
    exchange.respond(error.status, orjson.dumps({"error": error.message}), fields=fields)


def compress(pieces: Sequence[Buffer], coding: bytes) -> bytes:
    """The pieces as one body in gzip, or deflate as HTTP means it (a zlib stream)."""
    packer = zlib.compressobj(_LEVEL, wbits=_WINDOW[coding])
    packed = [packer.compress(piece) for piece in pieces]
    packed.append(packer.flush())  # not in one display: mypyc runs that ahead of what is unpacked
    return b"".join(packed)
