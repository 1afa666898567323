"""What one WebSocket, and all of them together, may take of a worker; and what is counted.

Plain data. Every table and buffer that a client can fill has its bound here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from gateway.lane.limits import GIB, MIB
from gateway.measures import Family


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketLimits:
    """Sizes in bytes, times in seconds. Times are kept by a sweep each second."""

    max_message: int = 64 * MIB  # 1009 beyond
    max_in_flight: int = 256  # requests of one socket that have not ended; 429 beyond
    max_held: int = 64 * MIB  # messages of those requests; 429 beyond, but one is always taken
    max_unsent: int = 256 * MIB  # answers that one client has not taken; 1008 beyond
    max_total: int = 1 * GIB  # all of these bytes of all sockets; 1013 for who passes it
    max_sockets: int = 65_536  # 503 to the next handshake
    ping_s: float = 20.0  # silence before a ping, and again before the peer counts as dead
    stall_s: float = 30.0  # 1008 to a client that takes less than PIECE bytes in so long
    close_s: float = 5.0  # for the close frame to leave


@dataclass(slots=True)
class SocketStats:
    """Plain counters since the start, and the gauge `open`."""

    opened: int = 0
    open: int = 0
    refused: int = 0  # handshakes
    received: int = 0  # messages
    sent: int = 0
    abandoned: int = 0  # requests that were live when their socket closed
    closed: Counter[int] = field(default_factory=Counter)  # sockets by close code

    def families(self) -> list[Family]:
        """For the worker's metrics."""
        codes = [[[str(code)], count] for code, count in self.closed.items()]
        messages = [[["in"], self.received], [["out"], self.sent]]
        return [
            ["penstock_websockets_open", "gauge", "WebSockets that are open.", [], [[], self.open]],
            ["penstock_websockets_closed_total", "counter", "WebSockets by their close code.",
             ["code"], *codes],
            ["penstock_websockets_refused_total", "counter", "WebSocket handshakes refused.",
             [], [[], self.refused]],
            ["penstock_websocket_messages_total", "counter", "Messages by direction.",
             ["direction"], *messages],
            ["penstock_websocket_abandoned_total", "counter",
             "Requests whose WebSocket closed before they ended.", [], [[], self.abandoned]],
        ]  # fmt: skip
