"""How one request is framed and what it asks of the connection, read from a few fields.

Pure: fields in, a `Framing` or a refusal out. Invariant: two servers in a row cannot come to
different opinions about where a request that passes here ends (RFC 9112 §6.3, §11.2).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from gateway.lane.refusal import Refused

CHUNKED = -1
# Of the marks that RFC 3986 allows in a name, those that names have: a comma may be two hosts.
_HOST = re.compile(rb"(?:[A-Za-z0-9._~%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")
_ENCODINGS = {
    b"": None,
    b"deflate": b"deflate",
    b"gzip": b"gzip",
    b"identity": None,
    b"x-gzip": b"gzip",
}
# The fields that this is read from; the rest is the handler's business.
OWN = frozenset(
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
_Field = tuple[bytes, bytes]


class Framing:
    """`length`: bytes of the body, or CHUNKED. `encoding`: of the body, None where plain; if it is
    not one that can be undone here, `unknown_encoding`. `simple`: all that there is to do is read
    `length` bytes and answer on a connection that stays. `head`: the answer has no body."""

    __slots__ = (
        "encoding",
        "expects_continue",
        "head",
        "keep_alive",
        "length",
        "minor",
        "simple",
        "unknown_encoding",
        "upgrade",
    )

    def __init__(self, minor: int = 1, *, head: bool = False, keep_alive: bool = True) -> None:
        self.minor, self.head, self.keep_alive = minor, head, keep_alive
        self.length = 0
        self.expects_continue = self.unknown_encoding = self.upgrade = self.simple = False
        self.encoding: bytes | None = None


def read_framing(minor: int, head: bool, own: Sequence[_Field], max_body: int) -> Framing:
    """`own`: the fields of OWN, in order, names in lower case. Raises Refused."""
    framing = Framing(minor, head=head)
    _hosts(framing, own)
    _length(framing, own)
    _connection(framing, own)
    _encoding(framing, own)
    framing.simple = (
        minor == 1
        and framing.keep_alive
        and 0 <= framing.length <= max_body
        and not (framing.expects_continue or framing.upgrade or head)
        and not (framing.encoding or framing.unknown_encoding)
    )
    return framing


def is_host(value: bytes) -> bool:
    return _HOST.fullmatch(value) is not None


def _hosts(framing: Framing, own: Sequence[_Field]) -> None:
    hosts = [value for name, value in own if name == b"host"]
    if len(hosts) > 1 or (not hosts and framing.minor == 1):
        raise Refused(400, "a request has exactly one host field")
    if hosts and not is_host(hosts[0]):
        raise Refused(400, "the host field is malformed")


def _length(framing: Framing, own: Sequence[_Field]) -> None:
    lengths = [value for name, value in own if name == b"content-length"]
    codings = [value.lower() for name, value in own if name == b"transfer-encoding"]
    if len(lengths) > 1 or (lengths and not (lengths[0].isdigit() and len(lengths[0]) < 20)):
        raise Refused(400, "content-length must be one decimal number")
    if codings and (lengths or framing.minor == 0):
        raise Refused(400, "transfer-encoding excludes content-length and HTTP/1.0")
    if len(codings) > 1 or (codings and codings[0].rpartition(b",")[2].strip() != b"chunked"):
        raise Refused(400, "transfer-encoding must end in chunked")
    if codings and codings[0] != b"chunked":
        raise Refused(501, "the only transfer-encoding understood here is chunked")
    framing.length = CHUNKED if codings else int(lengths[0]) if lengths else 0
    for name, value in own:
        if name == b"expect":
            if value.lower() != b"100-continue":
                raise Refused(417, "the only expectation met here is 100-continue")
            # HTTP/1.0 knows no interim answers, and without a body there is nothing to wait for.
            framing.expects_continue = framing.minor == 1 and framing.length != 0


def _connection(framing: Framing, own: Sequence[_Field]) -> None:
    tokens = {
        token.strip(b" \t").lower()
        for name, value in own
        if name == b"connection"
        for token in value.split(b",")
    }
    framing.keep_alive = b"close" not in tokens and (framing.minor == 1 or b"keep-alive" in tokens)
    framing.upgrade = b"upgrade" in tokens and any(name == b"upgrade" for name, _ in own)


def _encoding(framing: Framing, own: Sequence[_Field]) -> None:
    codings = [value.lower() for name, value in own if name == b"content-encoding"]
    if len(codings) > 1 or (codings and codings[0] not in _ENCODINGS):
        framing.unknown_encoding = True
    elif codings:
        framing.encoding = _ENCODINGS[codings[0]]
