"""The newest figures of a training for Prometheus, on an HTTP port of their own.

Owns the port and the gauges; a scrape reads what was last reported and never waits for a step.
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Gauge, start_http_server

from trainer.errors import BadAddress

PREFIX = "penstock_trainer_"


class Exporter:
    """Serves GET /metrics at `address`, "host:port". Raises BadAddress when it cannot be had."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._registry = CollectorRegistry()
        self._gauges: dict[str, Gauge] = {}
        try:
            self._server, self._thread = start_http_server(int(port), host, self._registry)
        except OSError as error:
            raise BadAddress(f"metrics.prometheus: {address}: {error.strerror}") from error

    @property
    def port(self) -> int:
        return int(self._server.server_port)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in {"step": float(step), **values}.items():
            key = PREFIX + "".join(c if c.isalnum() else "_" for c in name)
            if key not in self._gauges:
                self._gauges[key] = Gauge(key, f"{name}, as last reported", registry=self._registry)
            self._gauges[key].set(value)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
