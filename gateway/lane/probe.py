"""Half-closed or gone? A client that has shut its sending side looks like one that has closed.

Owns nothing but a timer for as long as an answer is owed to such a client. The test is an interim
answer, 100 (Continue), which every HTTP/1.1 client reads over (RFC 9110 §15.2): a socket that is
gone resets the connection on it, and one that still listens gets its answer. Without this, either
half-closing clients get no answer, or work goes on for clients that left.
"""

from __future__ import annotations

import asyncio
import select
from typing import TYPE_CHECKING

from gateway.lane.exchange import OPEN
from gateway.lane.response import CONTINUE

if TYPE_CHECKING:
    from gateway.lane.turns import Turns

# Most answers come sooner than the first test, and then nobody is bothered by it.
FIRST_LOOK_S = 0.01
LONGEST_LOOK_S = 1.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0


def is_reset(transport: asyncio.Transport) -> bool:
    """Whether both directions of the socket are down."""
    socket = transport.get_extra_info("socket")
    if socket is None or socket.fileno() < 0:
        return False
    poll = select.poll()
    poll.register(socket.fileno(), 0)
    return any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0))


class ResetWatch:
    """Looks at growing intervals until nothing is owed any more."""

    __slots__ = ("_conn", "_delay", "_next_probe", "_pause")

    def __init__(self, conn: Turns) -> None:
        self._conn = conn
        self._delay = FIRST_LOOK_S
        self._pause = FIRST_PAUSE_S
        self._next_probe = 0.0
        conn.lane.loop.call_later(self._delay, self._look)

    def _look(self) -> None:
        conn = self._conn
        front = conn.front
        if front is None or conn.is_closed:
            return
        if is_reset(conn.transport):
            conn.transport.abort()
            return
        loop = conn.lane.loop
        now = loop.time()
        if front.phase == OPEN and front.head.framing.minor == 1 and now >= self._next_probe:
            conn.put(CONTINUE)
            self._next_probe = now + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE_S)
        self._delay = min(2 * self._delay, LONGEST_LOOK_S)
        loop.call_later(self._delay, self._look)
