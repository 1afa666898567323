"""Settings for every test."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Tests never assert times; shared machines stall, and that is no failure.
settings.register_profile(
    "penstock", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60
)
settings.load_profile("penstock")
