"""What happened lately to the processes and replicas of a gateway, for operators.

Owns a bounded ring: old events go, their numbers do not come again. `changes` finds what became of
the replicas between two statuses; it decides nothing.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

KEPT = 256


class Events:
    """`clock` gives seconds since 1970."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._ring: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._last = 0

    def add(self, kind: str, name: str, text: str) -> None:
        self._last += 1
        at = round(self._clock(), 3)
        self._ring.append({"id": self._last, "at": at, "kind": kind, "name": name, "text": text})

    def since(self, id: int = 0, limit: int = KEPT) -> list[dict[str, Any]]:
        """Events after number `id`, oldest first, the newest `limit` of them."""
        found = [event for event in self._ring if event["id"] > id]
        return found[-limit:] if limit else []


def changes(
    before: list[dict[str, Any]], after: list[dict[str, Any]]
) -> Iterator[tuple[str, str, str]]:
    """(kind, replica, text) of each replica whose state, version or reload differs between the
    `models` of two statuses."""
    old = {replica["name"]: replica for model in before for replica in model["replicas"]}
    for model in after:
        for new in model["replicas"]:
            was = old.get(new["name"])
            if was is not None:
                yield from _replica_changes(was, new)


def failures(
    before: list[dict[str, Any]], after: list[dict[str, Any]]
) -> Iterator[tuple[str, str, str]]:
    """(model, replica, reason) of each replica that has failed since, or for another reason."""
    old = {r["name"]: r.get("reason") for m in before for r in m["replicas"] if _failed(r)}
    for model in after:
        for new in model["replicas"]:
            reason = new.get("reason", "")
            if _failed(new) and old.get(new["name"], "unheard of") != reason:
                yield model["name"], new["name"], reason


def _failed(replica: dict[str, Any]) -> bool:
    return replica.get("state") == "failed"


def _replica_changes(was: dict[str, Any], now: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    name = now["name"]
    if was.get("state") != now.get("state"):
        reason = f": {now['reason']}" if now.get("reason") else ""
        yield "state", name, f"{was.get('state')} → {now.get('state')}{reason}"
    if was.get("version") != now.get("version") and now.get("version"):
        old = f" (before: {was['version']})" if was.get("version") else ""
        yield "version", name, f"serves {now['version']}{old}"
    reload = now.get("reload", "idle")
    if was.get("reload", "idle") != reload:
        target = f" {now['reload_to']}" if now.get("reload_to") else ""
        yield "reload", name, f"{reload}{target}"
