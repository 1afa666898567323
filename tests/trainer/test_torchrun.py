"""Under torchrun, as users start it: a killed rank costs a restart and nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from backends.checkpoint import Run, read_channel
from tests.trainer.ranks import BOUND_S, Ranks, journal, weight_hashes
from tests.trainer.tiny import CONFIG

# Several launches a test: a machine that others use may take its time.
pytestmark = pytest.mark.timeout(900)

OPTIONS = ("steps=400", "checkpoint.every=50", "checkpoint.keep=100")


def test_a_kill_under_torchrun_leaves_no_trace(tmp_path: Path):
    run = tmp_path / "run"
    (tmp_path / "train.toml").write_text(CONFIG.format(run=run))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--max-restarts", "1", "-m", "trainer", str(tmp_path / "train.toml"), *OPTIONS]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    with (tmp_path / "log").open("wb") as log:
        torchrun = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
        try:
            until = time.monotonic() + 2 * BOUND_S
            while not any(line["step"] >= 120 for line in journal(run, "step")):
                assert torchrun.poll() is None and time.monotonic() < until, said(tmp_path)
                time.sleep(0.005)
            holder = json.loads((run / "trainer.lock").read_text())
            os.kill(holder["pid"], signal.SIGKILL)
            assert torchrun.wait(3 * BOUND_S) == 0, said(tmp_path)
        finally:
            torchrun.terminate()
            torchrun.wait()
    starts = [(line["restarts"], line["step"]) for line in journal(run, "start")]
    assert [restarts for restarts, _ in starts] == [0, 1] and starts[1][1] >= 50

    whole = tmp_path / "whole"
    (tmp_path / "whole.toml").write_text(CONFIG.format(run=whole))
    ranks = Ranks(tmp_path / "logs", [str(tmp_path / "whole.toml"), *OPTIONS], 2)
    assert ranks.wait() == [0, 0], ranks.log()
    assert weight_hashes(run, 400) == weight_hashes(whole, 400)
    channel = read_channel(Run(run), "stable")
    assert channel is not None and channel.step == 400


def said(folder: Path) -> str:
    return (folder / "log").read_text()
