"""Who is let in by one worker: its tenants, and the gate that tells whose request one is.

Owns both, and what changes with the configuration. Without keys the gateway is open to all: then
nothing here is asked about any request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.auth import Gate
from gateway.config import GatewayConfig
from gateway.measures import Family
from gateway.tenants import Tenants

if TYPE_CHECKING:
    from gateway.lane import Lane
    from gateway.relay.surface import RelaySurface


class Admittance:
    def __init__(self, tenants: Tenants, relay: RelaySurface) -> None:
        self.tenants = tenants
        self._gate = Gate(self.tenants, route=relay.public, openai=relay.openai)

    def apply(self, config: GatewayConfig, lane: Lane) -> None:
        """From the lane's next request on."""
        self.tenants.apply(config.keys, config.server.workers)
        self._gate.apply(config.keys)
        lane.guard = self._gate if self._gate.closed else None

    def families(self) -> list[Family]:
        refused = ["penstock_unauthorized_total", "counter", "Requests without a good key.", []]
        return [*self.tenants.families(), [*refused, [[], self._gate.refused]]]
