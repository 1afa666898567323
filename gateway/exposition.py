"""Metric families as Prometheus reads them. Owns the form; `metrics` has the figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric

from gateway.metrics import Family


def render(families: Sequence[Family]) -> str:
    """The Prometheus text exposition."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(families))
    return generate_latest(registry).decode()


class _Collected:
    """Families in the form of prometheus_client's collectors."""

    def __init__(self, families: Sequence[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for name, kind, text, labels, *samples in self._families:
            if kind == "histogram":
                histogram = HistogramMetricFamily(name, text, labels=labels)
                for label_values, value in samples:
                    buckets = [(str(le), float(count)) for le, count in value["buckets"]]
                    histogram.add_metric(label_values, buckets, value["sum"])
                yield histogram
                continue
            family = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
            metric = family(name, text, labels=labels)
            for label_values, value in samples:
                metric.add_metric(label_values, value)
            yield metric
