"""Event files that TensorBoard reads, written without it.

Owns the two formats: records (length and data, each with a masked CRC-32C) and the few fields of an
`Event` message that a scalar needs. Invariant: a file is a sequence of whole records; a kill can
cut only the last one short, which TensorBoard passes over.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path


def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    """Castagnoli's."""
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _TABLE[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


def record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _masked(length) + data + _masked(data)


def _masked(data: bytes) -> bytes:
    value = crc32c(data)
    return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _bytes(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def event(wall: float, step: int, values: Mapping[str, float]) -> bytes:
    """Event {1: wall_time, 2: step, 5: Summary {1: Value {1: tag, 2: simple_value}}}."""
    summary = b"".join(
        _bytes(1, _bytes(1, tag.encode()) + _varint(2 << 3 | 5) + struct.pack("<f", value))
        for tag, value in values.items()
    )
    head = _varint(1 << 3 | 1) + struct.pack("<d", wall) + _varint(2 << 3) + _varint(step)
    return head + _bytes(5, summary)


class TensorBoard:
    """One file in `folder`; a run that goes on adds another, which TensorBoard joins to it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 10**9}.{socket.gethostname()}"
        self._file = (folder / name).open("ab", buffering=0)
        version = struct.pack("<d", time.time()), b"brain.Event:2"
        head = _varint(1 << 3 | 1) + version[0] + _bytes(3, version[1])
        self._file.write(record(head))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._file.write(record(event(time.time(), step, values)))

    def close(self) -> None:
        self._file.close()
