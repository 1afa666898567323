from __future__ import annotations

import pytest

from bench.load.holding import Holding
from bench.series import MeasureFailed


def test_connections_are_held_and_still_serve(base):
    with Holding(base, "/", 150) as holding:
        holding.ask()
        holding.ask()


def test_a_server_that_refuses_is_told(base):
    with pytest.raises(MeasureFailed, match="503"), Holding(base, "/status/503", 3):
        pass
    with pytest.raises(MeasureFailed, match="closed a connection"), Holding(base, "/drop", 3):
        pass
