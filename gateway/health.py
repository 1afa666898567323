"""`/healthz` and `/readyz` on the fast lane: probes come often, and from every balancer.

Healthy: the worker's loop turns. Ready: every model that is in service has a ready replica; where
not, the answer is 503 and says what each is waiting for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from gateway.errors import MethodNotAllowed
from gateway.lane import Exchange, Handler
from gateway.oip.reply import refuse


class Probe:
    """`state()`: whether it is well, and what else is said."""

    streams = False

    def __init__(
        self, good: str, bad: str, state: Callable[[], tuple[bool, dict[str, Any]]]
    ) -> None:
        self._good, self._bad, self._state = good, bad, state

    def __call__(self, exchange: Exchange) -> None:
        if exchange.method not in ("GET", "HEAD"):
            wrong = f"{exchange.path} takes GET or HEAD, not {exchange.method}"
            refuse(exchange, MethodNotAllowed(wrong, allow="GET, HEAD"))
            return
        well, detail = self._state()
        word, status = (self._good, 200) if well else (self._bad, 503)
        exchange.respond(status, orjson.dumps({"status": word, **detail}))


class HealthSurface:
    def __init__(self, ready: Callable[[], tuple[bool, dict[str, Any]]]) -> None:
        self._probes: dict[str, Handler] = {
            "/healthz": Probe("alive", "alive", lambda: (True, {})),
            "/readyz": Probe("ready", "not ready", ready),
        }

    def resolve(self, method: str, path: str) -> Handler | None:
        return self._probes.get(path)
