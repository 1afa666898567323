from __future__ import annotations

import pytest

from bench.scenarios.reload_memory import slope_kb


def test_the_slope_is_of_what_comes_after_the_first_tenth():
    steady = [100.0] * 3 + [300.0] * 28
    assert slope_kb(steady, 300) == pytest.approx(0, abs=1e-6)
    leaking = [200.0 + 0.5 * at for at in range(101)]
    assert slope_kb(leaking, 1000) == pytest.approx(51.2)
