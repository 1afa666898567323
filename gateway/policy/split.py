"""Which requests a canary gets: a share of the sessions, or of the requests.

Pure. Invariants: a session's part depends on its key and the share alone, so every worker and every
restart agrees on it, and a larger share only adds sessions; of n requests without a session the
canary gets share · n, rounded.
"""

from __future__ import annotations

from gateway.policy.rendezvous import digest

_RANGE = float(1 << 64)
# Other digests than those that bind sessions to replicas: else a share would be some replicas'.
_SALT = "canary "


class Split:
    """`sessions`: whether a session decides, where there is one."""

    def __init__(self, share: float, *, sessions: bool) -> None:
        if not 0.0 < share <= 1.0:
            raise ValueError(f"share must be above 0 and at most 1, not {share}")
        self._share, self._sessions = share, sessions
        self._credit = 0.5

    def canary(self, session: str | None) -> bool:
        """Whether this request is the canary's."""
        if self._sessions and session is not None:
            return digest(_SALT + session) < self._share * _RANGE
        self._credit += self._share
        if self._credit < 1.0:
            return False
        self._credit -= 1.0
        return True
