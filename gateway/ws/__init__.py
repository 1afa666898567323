"""WebSocket: many requests at once on one connection, answered in any order.

The protocol is told in docs/websocket.md. `frames`, `handshake` and `messages` are pure; `socket`
is one connection, `desk` takes its requests to the models, `surface` is what the lane is given.
"""

from gateway.ws.limits import SocketLimits, SocketStats
from gateway.ws.messages import Asked
from gateway.ws.stream import Opener, Stream
from gateway.ws.surface import WebSocketSurface

__all__ = ["Asked", "Opener", "SocketLimits", "SocketStats", "Stream", "WebSocketSurface"]
