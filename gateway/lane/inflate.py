"""Request bodies in gzip or deflate, bounded while they are inflated.

Invariant: no more than `limit` bytes are handed on, and no more than STEP bytes are inflated beyond
them, so a bomb costs what an ordinary body of the greatest size costs.
"""

from __future__ import annotations

import zlib

from gateway.lane.refusal import Refused

STEP = 64 * 1024
_WINDOW = {b"gzip": 31, b"deflate": 15}


class Inflater:
    """One body. `deflate` is the zlib format (RFC 9110 §8.4.1.2); a raw deflate stream, which some
    clients send under that name, is taken too. A second gzip member is allowed."""

    __slots__ = ("_decoder", "_encoding", "_fresh", "_room")

    def __init__(self, encoding: bytes, limit: int) -> None:
        self._encoding, self._room = encoding, limit
        self._decoder = zlib.decompressobj(_WINDOW[encoding])
        self._fresh = True

    def feed(self, data: bytes, out: list[bytes]) -> None:
        """Append what `data` inflates to; raises Refused (400 corrupt, 413 too much)."""
        while data:
            if self._decoder.eof:
                if self._encoding != b"gzip":
                    raise Refused(400, "there are bytes after the end of the deflate body")
                self._decoder = zlib.decompressobj(_WINDOW[self._encoding])
            if self._fresh and self._encoding == b"deflate" and data[0] & 0x0F != 8:
                self._decoder = zlib.decompressobj(-15)
            self._fresh = False
            piece = self._inflate(data)
            self._room -= len(piece)
            if self._room < 0:
                raise Refused(413, "the decompressed body is larger than the limit")
            if piece:
                out.append(piece)
            data = self._decoder.unused_data if self._decoder.eof else self._decoder.unconsumed_tail

    def finish(self) -> None:
        """The body has ended; raises Refused if the stream has not."""
        if not self._decoder.eof:
            raise Refused(400, "the compressed body is cut off")

    def _inflate(self, data: bytes) -> bytes:
        try:
            return self._decoder.decompress(data, STEP)
        except zlib.error as error:
            name = self._encoding.decode()
            raise Refused(400, f"the body is not valid {name} data: {error}") from error
