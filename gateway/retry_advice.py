"""What a refused client is told about trying again, as header lines for every HTTP surface.

Pure. Says when only where that is known: `retry-after` in whole seconds for everybody, rounded up,
and `retry-after-ms` for SDKs that can do better. `x-should-retry` decides where SDKs obey it.
"""

from __future__ import annotations

from math import ceil, isfinite

from gateway.errors import GatewayError

# SDKs wait no longer than this when they are told to try again; they would only come too early.
LONGEST_S = 60.0
_HEADER = b"x-should-retry"


def advice(error: GatewayError, fields: bytes = b"") -> bytes:
    """`fields`: header lines that are said already; what they say of it stays."""
    lines = b""
    after = error.retry_after
    if after is not None and isfinite(after):
        lines = b"retry-after: %d\r\nretry-after-ms: %d\r\n" % (
            max(1, ceil(after)),
            max(1, ceil(after * 1e3)),
        )
    if error.should_retry is None or _HEADER in fields:
        return lines
    again = error.should_retry and (after is None or after <= LONGEST_S)
    return lines + b"x-should-retry: %b\r\n" % (b"true" if again else b"false")
