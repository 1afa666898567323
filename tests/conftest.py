"""Settings for every test."""

from __future__ import annotations

import os

import pytest
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


def pytest_addoption(parser):
    parser.addoption(
        "--compiled",
        action="store_true",
        help="import the gateway's hot path as `make compile` built it, in the tests' process too",
    )


def pytest_configure(config):
    if config.getoption("--compiled"):
        from gateway import compiled

        if not compiled.use():
            raise pytest.UsageError("there is no build of these sources: make compile")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--compiled"):
        skip = pytest.mark.skip(reason="puts its own in place of what is compiled")
        for item in items:
            if item.get_closest_marker("interpreted"):
                item.add_marker(skip)
