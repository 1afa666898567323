"""The operations that gateways and operators ask of a replica, whatever it serves.

Owns their names and arguments. Invariant: an operation that is unknown, or has other arguments than
its own, changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from backends.errors import BadFrame, Conflict, Unsupported
from backends.events import Events
from backends.reload_terms import ROLLED_BACK
from backends.wire import Status


class Following(Protocol):
    """What a follower is asked; raises Conflict where it means nothing now."""

    def look_again(self) -> None: ...
    def roll_back(self, version: str) -> None: ...
    def steer(self) -> None: ...
    def allow(self, version: str) -> None: ...
    def refuse(self, version: str, reason: str) -> None: ...
    def point(
        self, channel: str, like: str, version: str, before: str
    ) -> asyncio.Future[dict[str, Any]]: ...


class Controlled(Protocol):
    """`following` is None where the replica follows no channel, or has just started; `bar` is then
    for what it must not serve, and raises Conflict where it follows none."""

    @property
    def following(self) -> Following | None: ...
    def bar(self, version: str, reason: str) -> None: ...
    def status(self) -> Status: ...
    def drain(self, reason: str) -> None: ...
    def undrain(self) -> None: ...


class Control:
    def __init__(self, replica: Controlled, events: Events) -> None:
        self._replica, self._events = replica, events
        self._operations: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
            "status": (lambda: None, ()),
            "reload": (lambda: self._follower.look_again(), ()),
            "rollback": (self._roll_back, ("version",)),
            "drain": (lambda: replica.drain("drained by an operator"), ()),
            "undrain": (replica.undrain, ()),
            "steer": (lambda: self._follower.steer(), ()),
            "swap": (lambda version: self._follower.allow(version), ("version",)),
            "refuse": (self._refuse, ("version", "reason")),
            "point": (
                lambda **said: self._follower.point(**said),
                ("channel", "like", "version", "before"),
            ),
        }

    def __call__(
        self, op: str, arguments: dict[str, Any]
    ) -> dict[str, Any] | asyncio.Future[dict[str, Any]]:
        """`point` moves a channel of the run: the reply comes when its every byte was verified.
        Raises Unsupported, BadFrame or Conflict."""
        if op not in self._operations:
            raise Unsupported(
                f"unknown op {op!r}; known: {', '.join(self._operations)}", param="op"
            )
        work, names = self._operations[op]
        for name in {*arguments} ^ {*names}:
            raise BadFrame(f"op {op!r} takes {', '.join(names) or 'no arguments'}", param=name)
        for name, value in arguments.items():
            if not isinstance(value, str):
                raise BadFrame(f"{name} of op {op!r} is a string", param=name)
        if op not in ("status", "steer"):
            self._events("control", op=op, **arguments)
        answer = work(**arguments)
        return answer if isinstance(answer, asyncio.Future) else self._replica.status().to_json()

    def _roll_back(self, version: str) -> None:
        if (following := self._replica.following) is not None:
            following.roll_back(version)
        else:
            self._replica.bar(version, ROLLED_BACK)

    def _refuse(self, version: str, reason: str) -> None:
        if (following := self._replica.following) is not None:
            following.refuse(version, reason)
        else:
            self._replica.bar(version, reason)

    @property
    def _follower(self) -> Following:
        if self._replica.following is None:
            raise Conflict("this replica follows no channel (or has just started)")
        return self._replica.following
