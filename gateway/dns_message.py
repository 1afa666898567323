"""DNS messages (RFC 1035, RFC 2782, RFC 6891): a question as bytes, and what an answer says.

Pure. Reads only what service discovery needs: SRV records, and the addresses that come with them.
Invariant: whatever the bytes are, reading ends, and raises BadAnswer where they are no answer.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import NamedTuple

A, AAAA, SRV, OPT = 1, 28, 33, 41
_IN = 1
_HEADER = struct.Struct("!6H")
_RECORD = struct.Struct("!HHIH")
_SRV = struct.Struct("!HHH")
_RECURSE, _TRUNCATED, _RESPONSE = 0x0100, 0x0200, 0x8000
NXDOMAIN = 3
# What survives the ways of the internet without fragments.
UDP_BYTES = 1232
# A name has at most 255 bytes, so no more labels than this.
_MOST_LABELS = 128
_MOST_RECORDS = 4096


class BadAnswer(Exception):
    """The bytes are no answer to this question."""


class Service(NamedTuple):
    """One SRV record. Lower priorities are used first."""

    priority: int
    weight: int
    port: int
    target: str
    ttl: int


class Reply(NamedTuple):
    """`code`: 0, NXDOMAIN or a failure. `addresses`: by name, of what the server added."""

    code: int
    truncated: bool
    services: tuple[Service, ...]
    addresses: dict[str, list[str]]


def ask(id: int, name: str, kind: int = SRV) -> bytes:
    """Raises ValueError where `name` is no name."""
    header = _HEADER.pack(id, _RECURSE, 1, 0, 0, 1)
    size = b"\0" + _RECORD.pack(OPT, UDP_BYTES, 0, 0)
    return header + _name(name) + struct.pack("!HH", kind, _IN) + size


def read(data: bytes, id: int, name: str, kind: int = SRV) -> Reply:
    """Raises BadAnswer."""
    try:
        found, flags, questions, *counts = _HEADER.unpack_from(data)
        if found != id or not flags & _RESPONSE or questions != 1:
            raise BadAnswer("it answers another question")
        asked, at = _read_name(data, _HEADER.size)
        if asked != name.rstrip(".").lower() or struct.unpack_from("!HH", data, at) != (kind, _IN):
            raise BadAnswer("it answers another question")
        services: list[Service] = []
        addresses: dict[str, list[str]] = {}
        truncated = bool(flags & _TRUNCATED)
        at += 4
        for _ in range(min(sum(counts), _MOST_RECORDS)):
            if truncated and at >= len(data):
                break
            at = _record(data, at, services, addresses)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise BadAnswer(f"it is cut off or broken: {error}") from error
    return Reply(flags & 0xF, truncated, tuple(services), addresses)


def _record(data: bytes, at: int, services: list[Service], addresses: dict[str, list[str]]) -> int:
    """Returns where it ends."""
    owner, at = _read_name(data, at)
    kind, class_, ttl, size = _RECORD.unpack_from(data, at)
    at += _RECORD.size
    end: int = at + size
    if end > len(data):
        raise BadAnswer("a record is cut off")
    if class_ != _IN:
        return end
    if kind == SRV:
        priority, weight, port = _SRV.unpack_from(data, at)
        target, _ = _read_name(data, at + _SRV.size)
        if target:  # "." says that there is no such service
            services.append(Service(priority, weight, port, target, ttl))
    elif (kind, size) in ((A, 4), (AAAA, 16)):
        addresses.setdefault(owner, []).append(str(ipaddress.ip_address(data[at:end])))
    return end


def _name(name: str) -> bytes:
    labels = name.rstrip(".").encode("ascii").split(b".")
    if len(name) > 253 or not all(0 < len(label) < 64 for label in labels):
        raise ValueError(f"{name!r} is no name that DNS knows")
    return b"".join(bytes((len(label),)) + label for label in labels) + b"\0"


def _read_name(data: bytes, at: int) -> tuple[str, int]:
    """In lower case, without the dot at its end; and where it ends."""
    labels: list[str] = []
    end = -1
    for _ in range(2 * _MOST_LABELS):
        size = data[at]
        if size >= 0xC0:  # the rest stands elsewhere
            if end < 0:
                end = at + 2
            at = (size & 0x3F) << 8 | data[at + 1]
        elif size >= 0x40:
            raise BadAnswer("a label of an unknown kind")
        elif size:
            if at + 1 + size > len(data):
                raise BadAnswer("a label is cut off")
            labels.append(data[at + 1 : at + 1 + size].decode("ascii").lower())
            at += 1 + size
        else:
            return ".".join(labels), at + 1 if end < 0 else end
    raise BadAnswer("a name without an end")
