"""Small JSON records (LATEST, channels, leases, quarantine): sealed, bounded, replaced atomically.

Owns their encoding, which the manifest shares: JSON with the xxh3-128 of the rest in `seal`, so
that a flipped bit or an edit by hand is noticed. It knows nothing of what the records mean.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import orjson
import xxhash

from backends.checkpoint.disk import open_regular
from backends.checkpoint.errors import BadRecord, Unreadable

# A record holds names and numbers; larger ones are damage or an attack.
MAX_RECORD = 1 << 20


def canonical(value: Any) -> bytes:
    """The one JSON text of `value`. Raises BadRecord when it has none."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError as error:
        raise BadRecord(f"cannot be written as JSON: {error}") from error


def digest(data: bytes) -> str:
    """xxh3-128 as 32 hexadecimal digits."""
    return str(xxhash.xxh3_128_hexdigest(data))


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    return {**value, "seal": digest(canonical(value))}


def seal(value: dict[str, Any]) -> bytes:
    return orjson.dumps(sealed(value), option=orjson.OPT_INDENT_2)


def unseal(data: bytes, name: str) -> dict[str, Any]:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise BadRecord(f"{name} is not JSON") from error
    if not isinstance(value, dict):
        raise BadRecord(f"{name} is no table")
    if value.pop("seal", None) != digest(canonical(value)):
        raise BadRecord(f"{name} does not match its seal: it is damaged or was edited by hand")
    return value


def read_bounded(path: Path, limit: int) -> bytes | None:
    """The file's bytes, None if there is none.

    Raises BadRecord if there are more than `limit`, Unreadable when the file system refuses.
    """
    try:
        fd = open_regular(path.parent, path.name)
        with os.fdopen(fd, "rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unreadable(f"{path}: {error}") from error
    if len(data) > limit:
        raise BadRecord(f"{path.name} is larger than {limit} bytes")
    return data


def read_record(path: Path) -> dict[str, Any] | None:
    """The record, None if there is none. Raises BadRecord when it cannot be trusted."""
    data = read_bounded(path, MAX_RECORD)
    return None if data is None else unseal(data, path.name)
