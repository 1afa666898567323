"""Frames of the wire: their layout, their encoding, and the decoder that finds them in a stream.

Owns bytes, not meaning: what a frame's meta says is in `messages`. Invariant: a decoder yields
exactly the frames that were encoded, however the bytes were cut up on the way, and refuses anything
else before it allocates for it.

    0      2    3     4          8          12                  20
    +------+----+-----+----------+----------+-------------------+------------+-------------+
    | magic| ver| kind| meta_len | data_len | id                | meta (JSON)| data (raw)  |
    +------+----+-----+----------+----------+-------------------+------------+-------------+
      u16    u8   u8    u32        u32        u64                 meta_len     data_len

Integers are little-endian. `id` names the request within its connection; 0 names the connection.

Every request frame (EXECUTE, CALL, CONTROL) gets exactly one terminal answer: RESULT, the final
piece of STREAM, REPLY, or ERROR. CANCEL asks for that answer soon; it does not replace it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import orjson

MAGIC = 0x5350
VERSION = 1
HEADER = struct.Struct("<HBBIIQ")
# Larger than any tensor batch seen so far; a corrupt length cannot take the host's memory.
MAX_FRAME = 512 * 1024 * 1024
# One read's worth; frames that fit are copied out of it, larger ones get their own buffer.
SCRATCH = 256 * 1024

_BLANKS = b" " * 8

Buffer = bytes | bytearray | memoryview


class WireError(Exception):
    """The peer sent bytes that are no frame; the connection cannot be trusted any more."""


class Kind(IntEnum):
    """What a frame means. g→r: gateway to replica. Meta is JSON with the keys given here.

    HELLO    g→r  {gateway, protocol}: the first frame of a connection.
    STATUS   r→g  the replica's whole state (see `Status`): answers HELLO, sent again on change.
    EXECUTE  g→r  one batch of requests (see `execute_meta`); data: gathered inputs in order.
    RESULT   r→g  the outputs of an EXECUTE (see `result_meta`); data: gathered outputs in order.
    CALL     g→r  one generative request; data: its JSON body as the client sent it (see `Call`).
    STREAM   r→g  pieces of many CALLs in one frame (see `Piece`); data: the pieces in order.
    CANCEL   g→r  the client of `id` has gone; no meta.
    CONTROL  g→r  {op, …}: an operation on the replica (reload, rollback, drain, …).
    REPLY    r→g  the answer to a CONTROL; meta is operation specific.
    ERROR    r→g  `id` failed as a whole (see `Fault`).
    PING     both no meta; answered by PONG with the same id.
    """

    HELLO = 1
    STATUS = 2
    EXECUTE = 3
    RESULT = 4
    CALL = 5
    STREAM = 6
    CANCEL = 7
    CONTROL = 8
    REPLY = 9
    ERROR = 10
    PING = 11
    PONG = 12


_KINDS = frozenset(int(kind) for kind in Kind)


class Frame(NamedTuple):
    kind: int
    id: int
    meta: Buffer
    data: memoryview

    def json(self) -> Any:
        """The meta as Python objects. Raises WireError when it is no JSON."""
        try:
            return orjson.loads(self.meta) if len(self.meta) else {}
        except orjson.JSONDecodeError as error:
            raise WireError(f"frame {self.kind} carries meta that is not JSON") from error


def encode(kind: int, id: int, meta: Any = None, data: Sequence[Buffer] = ()) -> list[Buffer]:
    """One frame as buffers for `transport.writelines`; tensor bytes are passed on, never copied."""
    packed = b"" if meta is None else orjson.dumps(meta)
    # Blanks, which JSON ignores, so that tensors begin where any type may be read in place.
    packed += _BLANKS[: -len(packed) % 8]
    size = 0
    for buffer in data:
        size += buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)
    if len(packed) + size > MAX_FRAME:
        raise WireError(f"a frame of {len(packed) + size} bytes is over the limit of {MAX_FRAME}")
    head = HEADER.pack(MAGIC, VERSION, kind, len(packed), size, id) + packed
    return [head, *data] if size else [head]


class Decoder:
    """Cuts a byte stream into frames; made for `asyncio.BufferedProtocol`, usable with `feed`.

    Small frames are read many at a time into one scratch buffer and copied out once. A frame that
    does not fit there gets a buffer of its own, which the socket then fills directly.
    """

    def __init__(self, max_frame: int = MAX_FRAME) -> None:
        self._max = max_frame
        self._scratch = bytearray(SCRATCH)
        self._view = memoryview(self._scratch)
        self._end = 0
        # A large frame on its way: its header, its own buffer and how much of that is filled.
        self._large: tuple[int, int, int] | None = None
        self._body = bytearray()
        self._filled = 0

    def get_buffer(self, sizehint: int = -1) -> memoryview:
        """Where the next bytes belong; never empty."""
        if self._large is not None:
            return memoryview(self._body)[self._filled :]
        return self._view[self._end :]

    def buffer_updated(self, nbytes: int) -> list[Frame]:
        """`nbytes` were written to `get_buffer()`: the frames that are now complete."""
        if self._large is not None:
            self._filled += nbytes
            return self._finish_large()
        self._end += nbytes
        return self._parse()

    def feed(self, data: Buffer) -> list[Frame]:
        """The same for bytes that already lie elsewhere; copies them."""
        frames: list[Frame] = []
        rest = memoryview(data)
        while len(rest):
            room = self.get_buffer()
            taken = min(len(room), len(rest))
            room[:taken] = rest[:taken]
            room.release()
            rest = rest[taken:]
            frames += self.buffer_updated(taken)
        return frames

    def _finish_large(self) -> list[Frame]:
        assert self._large is not None
        if self._filled < len(self._body):
            return []
        kind, id, meta_len = self._large
        view = memoryview(self._body)
        self._large, self._body, self._filled = None, bytearray(), 0
        return [Frame(kind, id, view[:meta_len], view[meta_len:])]

    def _parse(self) -> list[Frame]:
        frames: list[Frame] = []
        at, end, view = 0, self._end, self._view
        while end - at >= HEADER.size:
            kind, id, meta_len, data_len = self._header(at)
            start, total = at + HEADER.size, meta_len + data_len
            if end - start < total:
                if HEADER.size + total > SCRATCH:
                    self._start_large(kind, id, meta_len, total, start)
                    return frames
                break
            body = bytes(view[start : start + total])
            frames.append(Frame(kind, id, body[:meta_len], memoryview(body)[meta_len:]))
            at = start + total
        if at:
            self._scratch[: end - at] = self._scratch[at:end]
            self._end = end - at
        return frames

    def _header(self, at: int) -> tuple[int, int, int, int]:
        magic, version, kind, meta_len, data_len, id = HEADER.unpack_from(self._scratch, at)
        if magic != MAGIC:
            raise WireError(f"expected a frame, got bytes that start with 0x{magic:04x}")
        if version != VERSION:
            raise WireError(f"peer speaks wire version {version}, this side speaks {VERSION}")
        if kind not in _KINDS:
            raise WireError(f"unknown frame kind {kind}")
        if meta_len + data_len > self._max:
            raise WireError(f"frame of {meta_len + data_len} bytes is over the limit {self._max}")
        return kind, id, meta_len, data_len

    def _start_large(self, kind: int, id: int, meta_len: int, total: int, start: int) -> None:
        have = self._end - start
        self._body = bytearray(total)
        self._body[:have] = self._view[start : self._end]
        self._large, self._filled, self._end = (kind, id, meta_len), have, 0
