"""What a request's head asks of the relay, read once for all requests with the same bytes.

Owns the names and the validation of those headers. Knows no replica and reads no clock. Invariant:
an `Asked` is a function of the head and its destination alone, so it may be remembered.
"""

from __future__ import annotations

import re
from math import inf

from gateway.errors import BadRequest
from gateway.lane import Exchange, field
from gateway.oip.terms import read_priority
from gateway.policy.session import SessionSources
from gateway.relay.head import request_start

# RFC 9110 §9.2.2: doing these twice is the same as doing them once.
_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"})
# What says how long the client will wait, and in what part of seconds; the others are SDKs' ways
# (Python, JavaScript). SDKs may say 0 for less than one: then they are not taken at their word.
_DEADLINES = (
    (b"x-deadline-ms", 1e-3),
    (b"x-stainless-read-timeout", 1.0),
    (b"x-stainless-timeout", 1.0),
)
_SDK = b"x-stainless-"
# Where clients put their key; OpenAI's and OIP's use the first, Azure's and Anthropic's the others.
CREDENTIALS = frozenset({b"authorization", b"api-key", b"x-api-key"})
# Segments that servers resolve, some of them in encoded forms too.
_DOTS = re.compile(r"(?:[/\\]|%2f|%5c)(?:\.|%2e){1,2}(?:[/\\;]|%2f|%5c|%3b|$)", re.IGNORECASE)
# Longer ones are no identifiers.
MAX_ID = 256


class Asked:
    """`deadline_s`: after the arrival, infinite without one. `request_id`: the client's as a header
    line, empty without one. `session`: as far as the head tells. `idempotent`: whether doing it
    twice does no harm. `priority`: 0 is ordinary, higher is sooner."""

    __slots__ = (
        "_head",
        "_key",
        "_ours",
        "_scheme",
        "_starts",
        "_target",
        "deadline_s",
        "idempotent",
        "is_head",
        "priority",
        "request_id",
        "session",
        "upgrade",
    )

    def __init__(
        self, exchange: Exchange, sessions: SessionSources, strip: int, key: bytes = b""
    ) -> None:
        """`strip`: characters of the path that the upstream does not see. `key`: the header line of
        the replicas' own key. Raises BadRequest."""
        head = exchange.head
        fields = dict(reversed(head.headers))  # the first of equal names counts
        self._head, self._scheme = head, b"https" if exchange.tls else b"http"
        if _DOTS.search(head.path):
            raise BadRequest(
                "the path has . or .. in it, which may lead past its route; send where it leads to"
            )
        path = head.path[strip:]
        if not path.startswith("/") and path != "*":
            path = "/" + path
        self._target = (f"{path}?{head.query}" if head.query else path).encode()
        # What let the client in here is not for the replicas.
        self._key, self._ours = key, CREDENTIALS if key or exchange.tenant else frozenset[bytes]()
        self._starts: dict[tuple[bytes | None, bytes], bytes] = {}
        self.is_head = head.method == "HEAD"
        self.idempotent = head.method in _IDEMPOTENT or b"idempotency-key" in fields
        # To HTTP/2 in the clear: what came then would pass unseen, on paths of any route.
        protocol = fields.get(b"upgrade", b"").lower()
        self.upgrade = head.framing.upgrade and b"h2c" not in protocol and b"http/" not in protocol
        self.deadline_s = inf
        for name, unit in _DEADLINES:
            if name in fields and not (name.startswith(_SDK) and fields[name] == b"0"):
                self.deadline_s = min(self.deadline_s, read_seconds(name, fields[name], unit))
        self.priority = read_priority(fields.get(b"x-priority", b"0"))
        given = fields.get(b"x-request-id", b"")
        if len(given) > MAX_ID:
            raise _bad(b"x-request-id", given, f"at most {MAX_ID} bytes")
        self.request_id = field(b"x-request-id", given) if given else b""
        self.session = sessions.key(fields.get, head.query)

    def start(self, host: bytes | None, prefix: bytes) -> bytes:
        """The request line and most fields for an upstream; `host` None keeps the client's."""
        known = self._starts.get((host, prefix))
        if known is None:
            head = self._head
            known = self._starts[host, prefix] = request_start(
                head.method.encode(),
                prefix + self._target,
                head.headers,
                host=host,
                scheme=self._scheme,
                upgrade=self.upgrade,
                ours=self._ours,
                key=self._key,
            )
        return known


def read_seconds(name: bytes, value: bytes, unit: float) -> float:
    """A header's number, in parts of a second. Raises BadRequest."""
    whole, _, decimals = value.partition(b".")
    if not (whole + decimals).isdigit() or len(value) > 15 or not float(value):
        raise _bad(name, value, "a number above 0")
    return float(value) * unit


def _bad(name: bytes, value: bytes, expected: str) -> BadRequest:
    said = value.decode("latin-1")
    said = said if len(said) <= 60 else f"{said[:57]}..."
    return BadRequest(
        f"header {name.decode()} is {said!r}; expected {expected}", param=name.decode()
    )
