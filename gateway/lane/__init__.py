"""The fast lane: an HTTP/1.1 server with no task per request.

Serves what `resolve` knows a handler for, and hands other connections to the application server.
It knows nothing of models, tensors or replicas.
"""

from gateway.lane.exchange import Exchange, Handler
from gateway.lane.lane import Guard, HandOver, Lane, Resolve
from gateway.lane.limits import LaneStats, Limits
from gateway.lane.pattern import RequestHead
from gateway.lane.response import field

__all__ = [
    "Exchange",
    "Guard",
    "HandOver",
    "Handler",
    "Lane",
    "LaneStats",
    "Limits",
    "RequestHead",
    "Resolve",
    "field",
]
