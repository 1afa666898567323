"""Settings for every test."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Tests never assert times; shared machines stall, and that is no failure.
# CI repeats the same examples, so that a change is judged by what it changed; people explore.
settings.register_profile(
    "penstock",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    max_examples=60,
    derandomize="CI" in os.environ,
)
settings.load_profile("penstock")
