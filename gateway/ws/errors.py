"""Refusals that only a WebSocket knows."""

from __future__ import annotations

from gateway.errors import GatewayError


class UpgradeRequired(GatewayError):
    """What must be spoken here is WebSocket."""

    status, code = 426, "upgrade_required"


class GoingAway(GatewayError):
    """This worker is ending; another one takes the request on a new socket."""

    status, code, retryable = 503, "going_away", True
