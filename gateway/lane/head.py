"""Request heads: parsed once, checked strictly, remembered.

Owns every rule about what a head may say; knows no connection. llhttp (in httptools) checks the
fields' grammar, and the request line, framing and Host are checked here, because llhttp lets more
through than a server that stands beside other servers may. Clients on kept connections send the
same bytes again and again, so whole heads are memoised; equal bytes cannot parse differently.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import httptools

from gateway.lane.limits import Limits
from gateway.lane.refusal import Refused

_LINE = re.compile(rb"([A-Z][A-Z-]*) ([!-~]+) HTTP/(\d)\.(\d)\r\n")
_ABSOLUTE = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?://([^/?#@]+)(.*)")
_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")
_ENCODINGS = {
    b"gzip": b"gzip",
    b"x-gzip": b"gzip",
    b"deflate": b"deflate",
    b"identity": None,
    b"": None,
}
# Heads with a request id in them never repeat; the table is emptied when they have filled it.
MEMO_ENTRIES = 1024
MEMO_BYTES = 2048  # the longest head that is worth keeping

CHUNKED = -1


class RequestHead:
    """What a head says. `length`: bytes of the body, CHUNKED if chunked. `simple`: nothing in it
    needs more than reading `length` bytes and answering on a connection that stays."""

    __slots__ = (
        "encoding",
        "expects_continue",
        "headers",
        "keep_alive",
        "length",
        "method",
        "minor",
        "path",
        "query",
        "simple",
        "unknown_encoding",
        "upgrade",
    )

    def __init__(self) -> None:
        self.method = "GET"
        self.path = "/"
        self.query = ""
        self.headers: list[tuple[bytes, bytes]] = []
        self.length = 0
        self.minor = 1
        self.keep_alive = True
        self.expects_continue = False
        self.encoding: bytes | None = None
        self.unknown_encoding = False
        self.upgrade = False
        self.simple = False


class _Fields:
    """httptools' callbacks: gathers (lower-case name, value)."""

    __slots__ = ("on_header",)

    def __init__(self, fields: list[tuple[bytes, bytes]]) -> None:
        append = fields.append
        self.on_header: Callable[[bytes, bytes], None] = lambda name, value: append(
            (name.lower(), value.strip(b" \t"))
        )


class HeadReader:
    """`memo` may be asked directly with a head's exact bytes; `read` fills it."""

    __slots__ = ("_limits", "memo")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.memo: dict[bytes, RequestHead] = {}

    def read(self, raw: bytes) -> RequestHead:
        """`raw` runs from the request line to the empty line, both included; raises Refused."""
        known = self.memo.get(raw)
        if known is not None:
            return known
        head = self._parse(raw)
        if len(raw) <= MEMO_BYTES:
            if len(self.memo) >= MEMO_ENTRIES:
                self.memo.clear()
            self.memo[raw] = head
        return head

    def _parse(self, raw: bytes) -> RequestHead:
        limits = self._limits
        if len(raw) > limits.max_head:
            raise Refused(431, f"the request's head is larger than {limits.max_head} bytes")
        line = _LINE.match(raw)
        if line is None:
            raise Refused(400, "the request line is malformed")
        if line.end() > limits.max_line:
            raise Refused(414, f"the request line is longer than {limits.max_line} bytes")
        if line[3] != b"1" or line[4] not in (b"0", b"1"):
            raise Refused(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
        head = RequestHead()
        head.minor = line[4][0] - 48
        head.method = line[1].decode()
        parser = httptools.HttpRequestParser(_Fields(head.headers))
        try:
            parser.feed_data(raw)
        except httptools.HttpParserUpgrade:
            pass  # the Upgrade field is looked at below
        except httptools.HttpParserInvalidMethodError as error:
            raise Refused(501, f"the method {head.method} is not known here") from error
        except httptools.HttpParserError as error:
            raise Refused(400, f"the request's head is malformed: {error}") from error
        if len(head.headers) > limits.max_headers:
            raise Refused(431, f"the request has more than {limits.max_headers} header fields")
        self._target(head, line[2])
        self._fields(head)
        head.simple = (
            head.minor == 1
            and head.keep_alive
            and 0 <= head.length <= limits.max_body
            and not (head.expects_continue or head.encoding or head.unknown_encoding)
            and not head.upgrade
            and head.method != "HEAD"
        )
        return head

    def _target(self, head: RequestHead, target: bytes) -> None:
        if head.method == "CONNECT":
            raise Refused(501, "CONNECT is not supported: this is no forward proxy")
        if b"#" in target:
            raise Refused(400, "the request target has a fragment")
        if target[:1] != b"/":
            absolute = _ABSOLUTE.fullmatch(target)
            if absolute is not None and _HOST.fullmatch(absolute[1]):
                # RFC 9112 §3.2.2: the target's authority replaces the Host field.
                target = absolute[2]
                head.headers[:] = [
                    (name, absolute[1] if name == b"host" else value)
                    for name, value in head.headers
                ]
                if target[:1] != b"/":
                    target = b"/" + target
            elif target != b"*" or head.method != "OPTIONS":
                raise Refused(400, "the request target is neither a path nor an http URL")
        path, _, query = target.partition(b"?")
        head.path, head.query = path.decode(), query.decode()

    def _fields(self, head: RequestHead) -> None:
        hosts = 0
        tokens: set[bytes] = set()
        coding = length = None
        for name, value in head.headers:
            if name == b"content-length":
                if length is not None or not value.isdigit() or len(value) > 19:
                    raise Refused(400, "content-length must be one decimal number")
                length = int(value)
            elif name == b"host":
                hosts += 1
                if not _HOST.fullmatch(value):
                    raise Refused(400, "the host field is malformed")
            elif name == b"transfer-encoding":
                if coding is not None:
                    raise Refused(400, "transfer-encoding is given twice")
                coding = value.lower()
            elif name == b"connection":
                tokens |= {token.strip(b" \t").lower() for token in value.split(b",")}
            elif name == b"expect":
                if value.lower() != b"100-continue":
                    raise Refused(417, "the only expectation met here is 100-continue")
                head.expects_continue = head.minor == 1
            elif name == b"content-encoding":
                encoding = value.lower()
                if head.encoding is not None or encoding not in _ENCODINGS:
                    head.unknown_encoding = True
                head.encoding = _ENCODINGS.get(encoding)
        if hosts > 1 or (hosts == 0 and head.minor == 1):
            raise Refused(400, "a request has exactly one host field")
        if coding is not None:
            if length is not None or head.minor == 0:
                raise Refused(400, "transfer-encoding and content-length, or HTTP/1.0, exclude")
            if coding != b"chunked":
                raise Refused(501, "the only transfer-encoding understood here is chunked")
            length = CHUNKED
        head.length = length or 0
        head.expects_continue = head.expects_continue and head.length != 0
        head.upgrade = b"upgrade" in tokens and any(name == b"upgrade" for name, _ in head.headers)
        head.keep_alive = b"close" not in tokens and (head.minor == 1 or b"keep-alive" in tokens)
