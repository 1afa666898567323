"""torchrun's elastic launcher: an agent is killed, and whoever is left goes on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from backends.checkpoint import Run
from tests.trainer.ranks import BOUND_S, journal
from tests.trainer.tiny import CONFIG

# Every change of the ranks starts Python anew.
pytestmark = pytest.mark.timeout(300)

PLAIN = ("model.class=tests.trainer.tiny:Plain", "steps=100000", "checkpoint.every=100")
RENDEZVOUS = "last_call_timeout=3,keep_alive_interval=1,keep_alive_max_attempt=6,join_timeout=60"


def test_a_machine_that_is_lost_leaves_a_run_that_goes_on(tmp_path: Path):
    run = tmp_path / "run"
    (tmp_path / "train.toml").write_text(CONFIG.format(run=run))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2"]
    command += ["--nproc-per-node", "1", "--max-restarts", "3", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "x"]
    command += ["--rdzv-conf", RENDEZVOUS, "-m", "trainer", str(tmp_path / "train.toml"), *PLAIN]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    agents: list[subprocess.Popen[bytes]] = []

    def join() -> subprocess.Popen[bytes]:
        with (tmp_path / f"log-{len(agents)}").open("wb") as log:
            agents.append(subprocess.Popen(command, env=environ, stdout=log, stderr=log))
        return agents[-1]

    def trains(ranks: int) -> Callable[[], bool]:
        """A commit was made since the run last began, with so many ranks."""

        def there() -> bool:
            starts, commits = journal(run, "start"), journal(run, "commit")
            if not starts or starts[-1]["ranks"] != ranks or not commits:
                return False
            return commits[-1]["step"] > starts[-1]["step"] + 100

        return there

    try:
        first, second = join(), join()
        wait(trains(2), first, tmp_path)
        second.kill()
        wait(trains(1), first, tmp_path)
        first.send_signal(signal.SIGTERM)
        first.wait(BOUND_S)
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()
    starts = journal(run, "start")
    assert [line["ranks"] for line in starts][-2:] == [2, 1]
    last = Run(run).latest()
    assert last is not None and last.position == last.step * 24
    commits = [line["step"] for line in journal(run, "commit")]
    assert starts[-1]["step"] in commits and starts[-2]["step"] < starts[-1]["step"] < last.step


def wait(condition: Callable[[], bool], agent: subprocess.Popen[bytes], folder: Path) -> None:
    until = time.monotonic() + 2 * BOUND_S
    while not condition():
        said = "\n".join(log.read_text() for log in sorted(folder.glob("log-*")))
        assert agent.poll() is None and time.monotonic() < until, said
        time.sleep(0.02)
