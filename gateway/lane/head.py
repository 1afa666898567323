"""Request heads: parsed once, checked strictly, remembered.

Owns every rule about what a head may say (RFC 9112 §3, §5); knows no connection. Clients repeat
themselves, so whole heads are memoised, and below them lines: a head with a new request id costs
one new line. Equal bytes cannot mean different things. This is quicker than llhttp with a callback
for each field, which the tests keep as an oracle.
"""

from __future__ import annotations

import re
from typing import cast

from gateway.lane.framing import OWN, Framing, is_host, read_framing
from gateway.lane.limits import Limits
from gateway.lane.pattern import CONTROLS_TO_ZERO, Field, Pattern, RequestHead
from gateway.lane.refusal import Refused

_LINE = re.compile(rb"([A-Z][A-Z-]*) ([!-~]+) HTTP/(\d)\.(\d)")
_ABSOLUTE = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?://([^/?#]+)((?:[/?].*)?)")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BEGINNING = re.compile(rb"[A-Z]|\r?\Z")
_BARE_LF = re.compile(rb"(?<!\r)\n")
# Lines and heads with a request id in them never repeat: only what comes twice is kept, and a table
# that is full is emptied. Longer ones than these, in bytes, are not worth their memory.
HEADS, HEAD_BYTES = 1024, 2048
LINES, LINE_BYTES = 4096, 512
# Values that change from request to request in an otherwise known head: ids of requests and traces.
HOLES = 3
# A pattern that so many heads of its length have not fitted makes room for another.
MISSES = 8

_RequestLine = tuple[str, str, str, int, bytes]


class HeadReader:
    """`memo` may be asked directly with a head's exact bytes, and `patterns` by its length; `read`
    fills them."""

    __slots__ = (
        "_framings",
        "_known",
        "_limits",
        "_names",
        "_own_lines",
        "_request_lines",
        "_seen",
        "memo",
        "patterns",
    )

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.memo: dict[bytes, RequestHead] = {}
        self.patterns: dict[int, Pattern] = {}
        self._framings: dict[tuple[int, bool, tuple[bytes, ...]], Framing] = {}
        self._request_lines: dict[bytes, _RequestLine] = {}
        self._known: dict[bytes, Field] = {}  # fields by their lines
        self._own_lines: set[bytes] = set()  # those lines of `_known` that framing must see
        self._names: dict[bytes, bytes] = {}  # field names, checked, to lower case
        self._seen = [0] * LINES  # hashes of lines that came once

    def find(self, data: bytes, end: int) -> RequestHead:
        """The head in `data[:end]`; raises Refused."""
        pattern = self.patterns.get(end)
        head = pattern.read(data) if pattern is not None else None
        return self.read(data[:end]) if head is None else head

    def read(self, raw: bytes) -> RequestHead:
        """`raw` runs from the request line to the empty line, both included; raises Refused."""
        known = self.memo.get(raw)
        if known is not None:
            return known
        limits = self._limits
        if len(raw) > limits.max_head:
            self.check_part(raw)  # raises: the head or its first line is too long
        lines = raw.split(b"\r\n")
        first = lines[0]
        known_line = self._request_lines.get(first)
        method, path, query, minor, authority = known_line or self._request_line(first)
        del lines[0], lines[-2:]  # the last two are empty
        if len(lines) > limits.max_headers:
            raise Refused(431, f"the request has more than {limits.max_headers} header fields")
        if len(self._known) >= LINES:
            # Both, and never within a head: a line of OWN's must not be known and unmarked.
            self._known.clear()
            self._own_lines.clear()
        found = list(map(self._known.get, lines))
        new: list[int] = []
        at = -1
        for _ in range(found.count(None)):
            at = found.index(None, at + 1)
            found[at] = self._field(lines[at])
            new.append(at)
        fields = cast("list[Field]", found)
        own = tuple(filter(self._own_lines.__contains__, lines))
        key = (minor, method == "HEAD", own)
        framing = self._framings.get(key)
        if framing is None:
            framing = self._framings[key] = self._frame(minor, method, fields)
        if authority:
            # RFC 9112 §3.2.2: the authority in the target replaces the Host field.
            fields = [(n, authority if n == b"host" else value) for n, value in fields]
        head = RequestHead(method, path, query, fields, framing)
        if len(raw) <= HEAD_BYTES:
            if not new:
                if len(self.memo) >= HEADS:
                    self.memo.clear()
                self.memo[raw] = head
            elif len(new) <= HOLES:
                self._see_pattern(raw, lines, new, head)
        return head

    def _see_pattern(
        self, raw: bytes, lines: list[bytes], new: list[int], head: RequestHead
    ) -> None:
        """Another head of this length may come that differs only where this one is new."""
        old = self.patterns.get(len(raw))
        if old is not None and old.fits(raw):
            old.learn(raw, head.framing)
        elif old is None or old.misses > MISSES:
            varying = [at for at in new if head.headers[at][0] != b"content-length"]
            if varying and not any(head.headers[at][0] in OWN for at in varying):
                self.patterns[len(raw)] = Pattern(raw, lines, varying, head)

    def check_part(self, part: bytes) -> None:
        """What can be said of a head before its end has come; raises Refused."""
        limits = self._limits
        if len(part) > limits.max_line and part.find(b"\r\n", 0, limits.max_line + 2) < 0:
            raise Refused(414, f"the request line is longer than {limits.max_line} bytes")
        if len(part) > limits.max_head:
            raise Refused(431, f"the request's head is larger than {limits.max_head} bytes")
        if _BEGINNING.match(part) is None or _BARE_LF.search(part) is not None:
            raise Refused(400, "this is not an HTTP/1 request")

    def _field(self, line: bytes) -> Field:
        name, colon, value = line.partition(b":")
        lower = self._names.get(name) if colon else None
        if lower is None:
            if not colon or _NAME.fullmatch(name) is None:
                raise Refused(400, "a header field is malformed: name, colon, value is expected")
            if len(self._names) >= LINES:
                self._names.clear()
            lower = self._names[name] = name.lower()
        value = value.strip(b" \t")
        if 0 in value.translate(CONTROLS_TO_ZERO):
            raise Refused(400, f"the value of {lower.decode()} contains a control character")
        field = (lower, value)
        if lower in OWN:
            if len(line) > LINE_BYTES:
                raise Refused(431, f"the field {lower.decode()} is longer than {LINE_BYTES} bytes")
            self._known[line] = field
            self._own_lines.add(line)
        elif len(line) <= LINE_BYTES:
            mark = hash(line)
            slot = mark % LINES
            if self._seen[slot] == mark:
                self._known[line] = field
            else:
                self._seen[slot] = mark
        return field

    def _frame(self, minor: int, method: str, fields: list[Field]) -> Framing:
        if len(self._framings) >= HEADS:
            self._framings.clear()
        own = [field for field in fields if field[0] in OWN]
        return read_framing(minor, method == "HEAD", own, self._limits.max_body)

    def _request_line(self, line: bytes) -> _RequestLine:
        """Method, path, query, minor version, and the authority of an absolute target."""
        limits = self._limits
        if len(line) > limits.max_line:
            raise Refused(414, f"the request line is longer than {limits.max_line} bytes")
        match = _LINE.fullmatch(line)
        if match is None:
            raise Refused(400, "the request line is malformed")
        method, target = match[1].decode(), match[2]
        if match[3] != b"1" or match[4] not in b"01":
            raise Refused(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
        if method == "CONNECT":
            raise Refused(501, "CONNECT is not supported: this is no forward proxy")
        if b"#" in target:
            raise Refused(400, "the request target has a fragment")
        authority = b""
        if target[:1] != b"/":
            absolute = _ABSOLUTE.fullmatch(target)
            if absolute is not None and is_host(absolute[1]):
                authority, target = absolute[1], absolute[2]
                if target[:1] != b"/":
                    target = b"/" + target
            elif target != b"*" or method != "OPTIONS":
                raise Refused(400, "the request target is neither a path nor an http URL")
        path, _, query = target.partition(b"?")
        parts = (method, path.decode(), query.decode(), match[4][0] - 48, authority)
        if len(line) <= LINE_BYTES:
            if len(self._request_lines) >= HEADS:
                self._request_lines.clear()
            self._request_lines[line] = parts
        return parts
