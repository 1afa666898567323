"""Request heads: parsed once, checked strictly, remembered.

Owns every rule about what a head may say; knows no connection. llhttp (in httptools) checks the
fields' grammar; the request line, Host and framing are checked here, because llhttp lets more
through than a server that stands beside other servers may. Clients repeat themselves, so request
lines, framing and whole heads are memoised: equal bytes cannot mean different things.
"""

from __future__ import annotations

import re

import httptools

from gateway.lane.framing import CHUNKED, Framing, FramingReader
from gateway.lane.limits import Limits
from gateway.lane.refusal import Refused

__all__ = ["CHUNKED", "HeadReader", "RequestHead"]

_LINE = re.compile(rb"([A-Z][A-Z-]*) ([!-~]+) HTTP/(\d)\.(\d)")
_ABSOLUTE = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?://([^/?#]+)((?:[/?].*)?)")
_BEGINNING = re.compile(rb"[A-Z]|\r?\Z")
_BARE_LF = re.compile(rb"(?<!\r)\n")
# Fields that decide how the lane goes on; the rest is the handler's business.
_OWN = frozenset(
    {
        b"connection",
        b"content-encoding",
        b"content-length",
        b"expect",
        b"host",
        b"transfer-encoding",
        b"upgrade",
    }
)
# Heads with a request id in them never repeat; a table that they fill is emptied.
MEMO_ENTRIES = 1024
SEEN_ENTRIES = 16 * MEMO_ENTRIES
MEMO_BYTES = 2048  # the longest head or line that is worth keeping

_Field = tuple[bytes, bytes]


class RequestHead:
    """What a head says. Shared by all requests with the same bytes: never changed once read."""

    __slots__ = ("framing", "headers", "method", "path", "query")

    def __init__(
        self, method: str, path: str, query: str, headers: list[_Field], framing: Framing
    ) -> None:
        self.method, self.path, self.query = method, path, query
        self.headers, self.framing = headers, framing


class HeadReader:
    """`memo` may be asked directly with a head's exact bytes; `read` puts there what comes a
    second time."""

    __slots__ = ("_fields", "_framing", "_limits", "_lines", "_seen", "memo")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._framing = FramingReader(limits, MEMO_ENTRIES)
        self.memo: dict[bytes, RequestHead] = {}
        self._seen: set[int] = set()
        self._lines: dict[bytes, tuple[str, str, str, int, bytes]] = {}
        self._fields: list[_Field] = []

    def read(self, raw: bytes) -> RequestHead:
        """`raw` runs from the request line to the empty line, both included; raises Refused."""
        known = self.memo.get(raw)
        if known is not None:
            return known
        head = self._parse(raw)
        if len(raw) <= MEMO_BYTES:
            mark = hash(raw)
            if mark not in self._seen:
                if len(self._seen) >= SEEN_ENTRIES:
                    self._seen.clear()
                self._seen.add(mark)
            else:
                if len(self.memo) >= MEMO_ENTRIES:
                    self.memo.clear()
                self.memo[raw] = head
        return head

    def check_part(self, part: bytes) -> None:
        """What can be said of a head before its end has come; raises Refused."""
        limits = self._limits
        if len(part) > limits.max_head:
            raise Refused(431, f"the request's head is larger than {limits.max_head} bytes")
        if len(part) > limits.max_line and part.find(b"\r\n", 0, limits.max_line + 2) < 0:
            raise Refused(414, f"the request line is longer than {limits.max_line} bytes")
        if _BEGINNING.match(part) is None or _BARE_LF.search(part) is not None:
            raise Refused(400, "this is not an HTTP/1 request")

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools' callback."""
        self._fields.append((name.lower(), value))

    def _parse(self, raw: bytes) -> RequestHead:
        limits = self._limits
        if len(raw) > limits.max_head:
            raise Refused(431, f"the request's head is larger than {limits.max_head} bytes")
        line = raw[: raw.find(b"\r\n")]
        known = self._lines.get(line)
        method, path, query, minor, authority = known or self._request_line(line)
        fields = self._fields = []
        try:
            httptools.HttpRequestParser(self).feed_data(raw)
        except httptools.HttpParserUpgrade:
            pass  # framing looks at the Upgrade field
        except httptools.HttpParserInvalidMethodError as error:
            raise Refused(501, f"the method {method} is not known here") from error
        except httptools.HttpParserError as error:
            raise Refused(400, f"the request's head is malformed: {error}") from error
        if len(fields) > limits.max_headers:
            raise Refused(431, f"the request has more than {limits.max_headers} header fields")
        if b" \r" in raw or b"\t" in raw:
            fields[:] = [(name, value.rstrip(b" \t")) for name, value in fields]
        own = [field for field in fields if field[0] in _OWN]
        framing = self._framing.read(minor, method == "HEAD", own)
        if authority:
            # RFC 9112 §3.2.2: the authority in the target replaces the Host field.
            fields[:] = [(n, authority if n == b"host" else value) for n, value in fields]
        return RequestHead(method, path, query, fields, framing)

    def _request_line(self, line: bytes) -> tuple[str, str, str, int, bytes]:
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
            if absolute is not None and self._framing.is_host(absolute[1]):
                authority, target = absolute[1], absolute[2]
                if target[:1] != b"/":
                    target = b"/" + target
            elif target != b"*" or method != "OPTIONS":
                raise Refused(400, "the request target is neither a path nor an http URL")
        path, _, query = target.partition(b"?")
        parts = (method, path.decode(), query.decode(), match[4][0] - 48, authority)
        if len(line) <= MEMO_BYTES:
            if len(self._lines) >= MEMO_ENTRIES:
                self._lines.clear()
            self._lines[line] = parts
        return parts
