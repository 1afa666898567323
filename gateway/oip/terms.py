"""What a request's headers ask for, beyond its body.

Owns their names and their validation. Values that are not understood are refused, never guessed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from gateway.errors import BadRequest
from gateway.lane import field

HEADER_LENGTH = b"inference-header-content-length"
_NAMES = frozenset(
    {
        HEADER_LENGTH,
        b"accept-encoding",
        b"x-deadline-ms",
        b"x-model-version",
        b"x-priority",
        b"x-request-id",
        b"x-session-id",
        b"x-timing",
    }
)
_ONCE = _NAMES - {b"accept-encoding"}
# Identifiers are kept and echoed; longer ones are no identifiers.
MAX_ID = 256
MAX_PRIORITY = 100


class Terms(NamedTuple):
    """`echo`: the x-request-id line for the response, empty where we make one. `deadline_s`: after
    the arrival, infinite without one. `coding`: the response's content coding, empty for none."""

    header_length: int | None = None
    echo: bytes = b""
    session: str | None = None
    deadline_s: float = float("inf")
    priority: int = 0
    timing: bool = False
    coding: bytes = b""
    version: str | None = None  # pinned, as /versions/{v} does


PLAIN = Terms()


def read_terms(headers: Iterable[tuple[bytes, bytes]]) -> Terms:
    """`headers`: names in lower case. Raises BadRequest."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _NAMES:
            if found.get(name, value) != value and name in _ONCE:
                raise _bad(name, b"given twice", "one value")
            found[name] = value
    if not found:
        return PLAIN
    return Terms(
        _header_length(found.get(HEADER_LENGTH)),
        _echo(found.get(b"x-request-id", b"")),
        _session(found.get(b"x-session-id", b"")),
        _deadline(found.get(b"x-deadline-ms")),
        read_priority(found.get(b"x-priority", b"0")),
        _timing(found.get(b"x-timing", b"0")),
        _coding(found.get(b"accept-encoding", b"")),
        _version(found.get(b"x-model-version", b"")),
    )


def _header_length(value: bytes | None) -> int | None:
    if value is None:
        return None
    if not value.isdigit() or len(value) > 15:
        raise _bad(HEADER_LENGTH, value, "the number of JSON bytes at the head of the body")
    return int(value)


def _echo(value: bytes) -> bytes:
    if len(value) > MAX_ID:
        raise _bad(b"x-request-id", value, f"at most {MAX_ID} bytes")
    return field(b"x-request-id", value) if value else b""


def _session(value: bytes) -> str | None:
    if len(value) > MAX_ID:
        raise _bad(b"x-session-id", value, f"at most {MAX_ID} bytes")
    return value.decode("latin-1") or None


def _version(value: bytes) -> str | None:
    if len(value) > MAX_ID:
        raise _bad(b"x-model-version", value, f"at most {MAX_ID} bytes")
    return value.decode("latin-1") or None


def _deadline(value: bytes | None) -> float:
    if value is None:
        return float("inf")
    whole, _, decimals = value.partition(b".")
    if not (whole + decimals).isdigit() or len(value) > 15 or not float(value):
        raise _bad(b"x-deadline-ms", value, "a number of milliseconds above 0")
    return float(value) / 1e3


def read_priority(value: bytes) -> int:
    """Of a header. Raises BadRequest."""
    digits = value[1:] if value[:1] in (b"-", b"+") else value
    if not digits.isdigit() or len(digits) > 3 or int(digits) > MAX_PRIORITY:
        expected = f"a whole number from -{MAX_PRIORITY} to {MAX_PRIORITY}; higher is sooner"
        raise _bad(b"x-priority", value, expected)
    return int(value)


def _timing(value: bytes) -> bool:
    if value not in (b"0", b"1"):
        raise _bad(b"x-timing", value, "0 or 1")
    return value == b"1"


def _coding(value: bytes) -> bytes:
    """Only a client that names one coding has asked for it: libraries add their list to every
    request, and some of them then decode nothing."""
    return value if value in (b"gzip", b"deflate") else b""


def _bad(name: bytes, value: bytes, expected: str) -> BadRequest:
    said = value.decode("latin-1")
    said = said if len(said) <= 60 else f"{said[:57]}..."
    return BadRequest(
        f"header {name.decode()} is {said!r}; expected {expected}", param=name.decode()
    )
