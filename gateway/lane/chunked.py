"""Chunked bodies (RFC 9112 §7.1), strictly: CRLF line ends, plain hexadecimal sizes.

Keeps no more than one unfinished line between calls. Invariant: it never reads a byte beyond the
end of the body that it decodes, so what follows belongs to the next request.
"""

from __future__ import annotations

import re

from gateway.lane.refusal import Refused

# 8 hexadecimal digits are 4 GiB; more is an overflow attack. Extensions are read over.
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})(?:[ \t]*;[\t -~\x80-\xff]*)?")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*")
MAX_LINE = 256

_SIZE_LINE, _DATA, _DATA_END, _TRAILERS, _DONE = range(5)


class ChunkedDecoder:
    """`feed` returns where it stopped reading; `done` says that the body has ended there."""

    __slots__ = ("_left", "_line", "_state", "_trailer_room", "done")

    def __init__(self, max_trailers: int) -> None:
        self._state = _SIZE_LINE
        self._left = 0  # of the current chunk
        self._line = b""
        self._trailer_room = max_trailers
        self.done = False

    def feed(self, data: bytes, at: int, out: list[bytes]) -> int:
        """Append the content in `data[at:]` to `out`; raises Refused."""
        end = len(data)
        while at < end and not self.done:
            if self._state == _DATA:
                piece = data[at : at + self._left]
                out.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._state = _DATA_END
                continue
            stop = data.find(b"\n", at)
            piece = data[at : end if stop < 0 else stop + 1]
            at += len(piece)
            self._line += piece
            if stop >= 0:
                line, self._line = self._line, b""
                if line[-2:] != b"\r\n":
                    raise Refused(400, "a line of the chunked body does not end in CRLF")
                self._take_line(line[:-2])
            elif len(self._line) > max(MAX_LINE, self._trailer_room):
                raise Refused(400, "a line of the chunked body is too long")
        return at

    def _take_line(self, line: bytes) -> None:
        if self._state == _SIZE_LINE:
            match = _SIZE.fullmatch(line)
            if match is None or len(line) > MAX_LINE:
                raise Refused(400, "a chunk's size is not a hexadecimal number")
            self._left = int(match[1], 16)
            self._state = _DATA if self._left else _TRAILERS
        elif self._state == _DATA_END:
            if line:
                raise Refused(400, "a chunk is longer than its size says")
            self._state = _SIZE_LINE
        elif line:
            # Trailers are checked and dropped: nothing that this gateway serves reads them.
            self._trailer_room -= len(line) + 2
            if self._trailer_room < 0:
                raise Refused(431, "the trailer fields are too large")
            if _TRAILER.fullmatch(line) is None:
                raise Refused(400, "a trailer field is malformed")
        else:
            self._state, self.done = _DONE, True
