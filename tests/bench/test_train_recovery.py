"""What `train-recovery` reads of processes and journals; the run itself is `bench run`'s."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from bench.scenarios.train_recovery import Recovery, birth, children, differing, variable
from bench.series import MeasureFailed


def test_a_process_is_found_and_tells_when_it_began():
    before = time.time()
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={"RANK": "1"}
    ) as child:
        assert child.pid in children(os.getpid())
        # /proc counts in hundredths, and the clocks are read one after the other.
        assert before - 1.0 < birth(child.pid) < time.time() + 1.0
        while variable(child.pid, "RANK") is None:
            assert child.poll() is None  # its environment is there when it has begun
        assert variable(child.pid, "RANK") == "1" and variable(child.pid, "WORLD") is None
        child.kill()
        child.wait()
        assert child.pid not in children(os.getpid())
        with pytest.raises(MeasureFailed, match="is gone"):
            birth(child.pid)


def test_a_step_that_came_out_otherwise_is_found():
    def step(number: int, loss: float) -> dict[str, object]:
        return {"event": "step", "step": number, "loss": loss}

    lines = [step(1, 3.0), step(2, 2.5), {"event": "start"}, step(2, 2.5), step(3, 2.0)]
    assert differing(lines) == []
    assert differing([*lines, step(3, 2.0000001)]) == [3]


def test_a_recovery_counts_from_its_processes():
    assert Recovery(0.5, 1.5, 3.0, 4).restarted_s == 2.5
