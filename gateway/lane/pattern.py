"""A head with holes: what stays the same between a client's requests, and the values that do not.

A head as long as one that was read before, and equal to it but for the values of fields that do not
matter to framing, has the same fields with those values. The one field of framing that may vary is
Content-Length, to values whose framing has been read in this very place. Invariant: a value that
goes into a hole has no control character, so no byte outside the holes means anything new.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.lane.framing import Framing

if TYPE_CHECKING:
    from gateway.tenants import Tenant

# Maps the bytes that no value may have to zero.
CONTROLS_TO_ZERO = bytes(0 if c == 127 or (c < 32 and c != 9) else 1 for c in range(256))

# Content-Lengths remembered for one pattern.
FRAMINGS = 1024

Field = tuple[bytes, bytes]


class RequestHead:
    """What a head says. Shared by all requests with the same bytes: never changed once read, but
    for what the lane's guard notes of it: `tenant`, whose request it is, and when it was `seen`."""

    __slots__ = ("framing", "headers", "method", "path", "query", "seen", "tenant")

    def __init__(
        self, method: str, path: str, query: str, headers: list[Field], framing: Framing
    ) -> None:
        self.method, self.path, self.query = method, path, query
        self.headers, self.framing = headers, framing
        self.tenant: Tenant | None = None
        self.seen: object = None


class Pattern:
    """Made from a head that has been read: its bytes, its lines without the request line, and the
    numbers of the lines whose values vary, none of which framing looks at."""

    __slots__ = ("_fixed", "_framings", "_head", "_holes", "_last", "_length", "misses")

    def __init__(
        self, raw: bytes, lines: list[bytes], varying: list[int], head: RequestHead
    ) -> None:
        self._head = head
        self.misses = 0  # heads of this length that were not of this pattern, since one was
        self._fixed: list[tuple[bytes, int]] = []  # what must be where
        self._holes: list[tuple[int, bytes, int, int]] = []  # field, its name, where its value is
        self._last: list[bytes] = []
        self._length: tuple[int, int, int] | None = None  # the same of Content-Length
        # Content-Length's values, with the framing they make and the field they are.
        self._framings: dict[bytes, tuple[Framing, Field]] = {}
        at, done = raw.index(b"\r\n") + 2, 0
        for number, line in enumerate(lines):
            name, start, stop = head.headers[number][0], at + line.index(b":") + 1, at + len(line)
            if name == b"content-length":
                self._length = (number, start, stop)
            elif number in varying:
                self._holes.append((number, name, start, stop))
            at = stop + 2
            if name == b"content-length" or number in varying:
                self._fixed.append((raw[done:start], done))
                done = stop
        self._fixed.append((raw[done:], done))
        self.learn(raw, head.framing)

    def fits(self, raw: bytes) -> bool:
        """Whether a head that has been read has these lines, and no others in its holes."""
        spans = [(start, stop) for _, _, start, stop in self._holes]
        if self._length is not None:
            spans.append(self._length[1:])
        same = all(raw.startswith(part, at) for part, at in self._fixed)
        if same and not any(0 in raw[a:b].translate(CONTROLS_TO_ZERO) for a, b in spans):
            self.misses = 0
            return True
        self.misses += 1
        return False

    def learn(self, raw: bytes, framing: Framing) -> None:
        """`raw`, which fits, has this framing."""
        if self._length is not None:
            if len(self._framings) >= FRAMINGS:
                self._framings.clear()
            _, start, stop = self._length
            value = raw[start:stop]
            self._framings[value] = framing, (b"content-length", value.strip(b" \t"))

    def read(self, data: bytes) -> RequestHead | None:
        """The head that `data` begins with, if it is of this pattern and its length is known."""
        for part, at in self._fixed:
            if not data.startswith(part, at):
                self.misses += 1
                return None
        known = self._head
        framing, headers = known.framing, known.headers.copy()
        last, self._last = self._last, []
        for number, name, start, stop in self._holes:
            value = data[start:stop]
            if 0 in value.translate(CONTROLS_TO_ZERO):
                return None
            headers[number] = (name, value.strip(b" \t"))
            self._last.append(value)
        if self._last == last:
            return None  # this repeats after all: it is to be remembered as a whole
        if self._length is not None:
            number, start, stop = self._length
            length = self._framings.get(data[start:stop])
            if length is None:
                return None
            framing, headers[number] = length
        self.misses = 0
        return RequestHead(known.method, known.path, known.query, headers, framing)
